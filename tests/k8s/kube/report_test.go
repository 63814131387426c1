// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coco-shim/coco/tests/harness"
)

const someJUnit = `<?xml version="1.0"?><testsuites><testsuite>
<testcase name="[It] [sig-storage] Secrets should be consumable [NodeConformance] [Conformance] [sig-storage, NodeConformance]" status="passed" time="3.5"></testcase>
<testcase name="[It] [sig-node] Pods should fail [Conformance] [sig-node]" status="failed" time="9"><failure message="timed out  after
 300s"></failure></testcase>
<testcase name="[It] [sig-node] Pods are left out" status="skipped" time="0"></testcase>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
</testsuite></testsuites>`

func TestReportOfARun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(file, []byte(someJUnit), 0o600); err != nil {
		t.Fatal(err)
	}
	specs, err := readJUnit(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []Spec{
		{Name: "[sig-storage] Secrets should be consumable [NodeConformance] [Conformance]", State: "passed", Seconds: 3.5},
		{Name: "[sig-node] Pods should fail [Conformance]", State: "failed", Seconds: 9, Failure: "timed out after 300s"},
	}
	if len(specs) != 2 || specs[0] != want[0] || specs[1] != want[1] {
		t.Fatalf("readJUnit = %+v, want %+v", specs, want)
	}
	dir := t.TempDir()
	r, err := ReadReport(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	r.Add("coco", "2.4", "abc", Group{Name: "x"}, specs)
	specs[1].State = "passed"
	r.Add("runc", "2.4", "abc", Group{Name: "x"}, specs)
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	again, err := ReadReport(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	if lost := again.Lost(); len(lost) != 1 || lost[0].Name != want[1].Name || lost[0].Group != "node-pods" {
		t.Errorf("lost = %+v, want the spec that passes under runc only, in its group", lost)
	}
	if passed := again.Passed("coco"); len(passed) != 1 || passed[0] != want[0].Name {
		t.Errorf("passed under coco = %v", passed)
	}
	md, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil || !strings.Contains(string(md), "| [sig-node] Pods should fail | passed | 9 | **failed** | 9 |") {
		t.Errorf("report.md = %s, %v", md, err)
	}
}

// TestEverySpecHasOneGroup looks at the names in the committed report.
func TestEverySpecHasOneGroup(t *testing.T) {
	r, err := ReadReport(filepath.Join(harness.Root(), "docs", "conformance", "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Specs {
		var in []string
		for _, g := range Groups {
			if regexp.MustCompile(g.Focus).MatchString(row.Name) && !regexp.MustCompile(g.Skip).MatchString(row.Name) {
				in = append(in, g.Name)
			}
		}
		if len(in) != 1 || row.Group != in[0] {
			t.Errorf("%s is in groups %v, the report says %s", row.Name, in, row.Group)
		}
	}
}
