// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// group makes a directory like a group's, with empty files.
func group(t *testing.T, dir string, files ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAVMMBesideASmallGroupKeepsItsQuota(t *testing.T) {
	const mib = 1 << 20
	v1, v2 := t.TempDir(), t.TempDir()
	group(t, v1+"/kube/pod1", "memory.limit_in_bytes=1048576", "cpu.cfs_quota_us=150000", "cpu.cfs_period_us=100000")
	group(t, v1+"/kube/pod1/c", "cpu.cfs_quota_us=-1", "cpu.cfs_period_us=100000")
	group(t, v1+"/kube/coco-c", "cpu.cfs_quota_us", "cpu.cfs_period_us")
	group(t, v2+"/kube/pod2", "memory.max=1048576", "cpu.max=2000 50000")
	group(t, v2+"/kube/coco-c", "cpu.max")
	group(t, v1+"/kube/pod3", "memory.limit_in_bytes=1048576", "cpu.cfs_quota_us=-1", "cpu.cfs_period_us=100000")
	hs := []Hierarchy{{Mount: v1}, {Mount: v2, V2: true}}
	for pod, want := range map[string]Place{
		"pod1": {Quota: 150000, Period: 100000},
		"pod2": {Quota: 5000, Period: 50000}, // a fiftieth of a processor would boot for minutes
		"pod3": {},
	} {
		p, err := WithRoom(hs, "/kube/"+pod+"/c", 2*mib)
		if err != nil || p.Path != "/kube/coco-c" || p.Quota != want.Quota || p.Period != want.Period {
			t.Errorf("WithRoom(%s) = %+v, %v, want %+v", pod, p, err, want)
		}
		if pod == "pod3" {
			continue
		}
		if err := p.SetQuota(hs); err != nil {
			t.Error(err)
		}
		if pod == "pod1" {
			if q := read(t, v1+"/kube/coco-c/cpu.cfs_quota_us"); q != "150000" {
				t.Errorf("v1: quota %s", q)
			}
		}
		if got := read(t, v2+"/kube/coco-c/cpu.max"); pod == "pod2" && got != "5000 50000" {
			t.Errorf("v2: quota %s", got)
		}
	}
}

func TestMemberships(t *testing.T) {
	hs := []Hierarchy{
		{Mount: "/cg/cpu,cpuacct", Options: "rw,cpu,cpuacct"},
		{Mount: "/cg/memory", Options: "rw,memory"},
		{Mount: "/cg/unified", V2: true},
		{Mount: "/cg/pids", Options: "rw,pids"},
	}
	got := memberships(hs, "5:cpu,cpuacct:/a/b\n3:memory:/\n1:name=systemd:/s\n0::/u:v\n")
	want := Membership{"/cg/cpu,cpuacct/a/b", "/cg/memory", "/cg/unified/u:v", "/cg/pids"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("memberships() (-want +got):\n%s", diff)
	}
}
