// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

func TestExplain(t *testing.T) {
	for _, d := range []compare.Denial{
		{
			Code: compare.Value, Container: "web", Field: `OCI.Process.Args[1]`, Want: `"8080"`, Got: `"9090"`,
			Fix: `containers[web].process.args[1] = "9090"`,
		},
		{Code: compare.Capability, Container: "web", Field: "process.Args", Want: "none: exec is closed", Got: "2 words"},
		{Code: compare.Content, Field: `file "a/b"`, Want: "the file of the policy", Got: "none"},
		{Code: compare.NoPolicy, Field: "port", Want: "a file policy.coco in the pod's initdata", Got: "none"},
	} {
		got, err := Explain("Error: container web: create container: " + d.Error() + ": permission denied")
		if err != nil {
			t.Fatal(err)
		}
		if got.Meaning == "" || got.Advice == "" {
			t.Errorf("code %s has no meaning or advice", d.Code)
		}
		got.Got = strings.TrimSuffix(got.Got, ": permission denied")
		got.Fix = strings.TrimSuffix(got.Fix, ": permission denied")
		got.Meaning, got.Advice = "", ""
		want := Explanation{Code: d.Code, Container: d.Container, Field: d.Field, Expected: d.Want, Got: d.Got, Fix: d.Fix}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := Explain("no such thing"); err == nil {
		t.Error("Explain of another text has no error")
	}
}

func example() *policy.Policy {
	is := "x"
	return &policy.Policy{
		APIVersion: policy.APIVersion,
		Pod: policy.Pod{
			Copy: true, Debug: true, Stats: true, PortForward: []uint16{80}, DNS: policy.DNS{FromHost: true},
		},
		Volumes: []policy.Volume{
			{Name: "v", Kind: policy.VolumeCopy, Content: &policy.Content{Rule: policy.ContentUnpinned}},
			{Name: "h", Kind: policy.VolumeHost},
		},
		Containers: []policy.Container{{
			Name: "c", Allow: policy.Capabilities{Exec: policy.Exec{Any: true}, Logs: true, Stdin: true},
			Process: policy.Process{
				Env: []policy.Env{
					{Name: "A", Value: policy.Value{Type: policy.TypeAny}}, {Name: "B", Value: policy.Value{Is: &is}},
				},
				Caps: policy.Caps{Effective: []string{"CAP_SYS_ADMIN"}},
			},
			Mounts: []policy.Mount{
				{Destination: "/etc/hosts", Source: policy.Source{Copy: &policy.Content{Rule: policy.ContentUnpinned}}},
				{Destination: "/x", Source: policy.Source{Copy: &policy.Content{Rule: policy.ContentUnpinned}}},
			},
			Linux: policy.Linux{Seccomp: []string{policy.NoSeccomp}},
			Workload: policy.Workload{
				Resources: []string{"kbs:///a/b/c"}, Calls: []string{policy.CallToken, policy.CallEvidence},
				ExportKey: true, Evidence: policy.EvidenceRaw, Azure: policy.Azure{Calls: []string{policy.AzureRaw}},
			},
		}},
	}
}

func TestWhatIsLeftToTheHost(t *testing.T) {
	var got []string
	for _, f := range Policy(example()) {
		kind, _, _ := strings.Cut(f.String(), ": ")
		got = append(got, kind+" "+f.At+" "+strings.Fields(f.Text)[0])
	}
	for _, want := range []string{
		"warning pod copy", "warning pod debug", "note pod stats", "warning pod the", "note pod name",
		"warning volume v content",
		"warning volume h is", "warning container c exec", "note container c logs", "warning container c stdin",
		"warning container c env", "warning container c, mount /x content", "warning container c has",
		"note container c may", "note container c fetches", "warning container c workload.exportKey",
		"warning container c workload.evidence", "warning container c workload.azure.calls",
		"warning container c is",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("lint tells %q, want %q among them", got, want)
		}
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "/etc/hosts") }) {
		t.Errorf("lint warns of a file that every container has: %q", got)
	}
	if f := Policy(&policy.Policy{}); len(f) != 0 {
		t.Errorf("lint of the closed policy = %v", f)
	}
}

func TestDiffGoesByNames(t *testing.T) {
	a, b := example(), example()
	b.Pod.Copy = false
	b.Containers = append([]policy.Container{{Name: "first"}}, b.Containers...)
	b.Containers[1].Process.Env[1].Optional = true
	got, err := Diff(a, b)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range got {
		if !strings.Contains(c.Path, "containers[first]") {
			lines = append(lines, c.String())
		}
	}
	want := []string{"+ containers[c].process.env[B].optional: true", "- pod.copy: true"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	if same, err := Diff(a, example()); err != nil || len(same) != 0 {
		t.Errorf("Diff of equal policies = %v, %v", same, err)
	}
}
