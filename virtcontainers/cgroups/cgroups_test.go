// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	hs := []Hierarchy{{Mount: "/sys/fs/cgroup/cpu"}, {Mount: "/sys/fs/cgroup/unified", V2: true}}
	for _, tt := range []struct {
		in     string
		dirs   []string
		leaves []string
		err    bool
	}{
		{in: ""},
		{in: "/", err: true},
		{in: "/..", err: true},
		{in: "a\nb", err: true},
		{
			in: "/default/c1",
			dirs: []string{
				"/sys/fs/cgroup/cpu/default", "/sys/fs/cgroup/cpu/default/c1",
				"/sys/fs/cgroup/unified/default", "/sys/fs/cgroup/unified/default/c1",
			},
			leaves: []string{"/sys/fs/cgroup/cpu/default/c1", "/sys/fs/cgroup/unified/default/c1"},
		},
		{
			in: "../../x", dirs: []string{"/sys/fs/cgroup/cpu/x", "/sys/fs/cgroup/unified/x"},
			leaves: []string{"/sys/fs/cgroup/cpu/x", "/sys/fs/cgroup/unified/x"},
		},
		{
			in: "kubepods-pod1.slice:cri-containerd:abc",
			dirs: []string{
				"/sys/fs/cgroup/cpu/kubepods.slice", "/sys/fs/cgroup/cpu/kubepods.slice/kubepods-pod1.slice",
				"/sys/fs/cgroup/cpu/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope",
				"/sys/fs/cgroup/unified/kubepods.slice", "/sys/fs/cgroup/unified/kubepods.slice/kubepods-pod1.slice",
				"/sys/fs/cgroup/unified/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope",
			},
			leaves: []string{
				"/sys/fs/cgroup/cpu/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope",
				"/sys/fs/cgroup/unified/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope",
			},
		},
	} {
		t.Run(tt.in, func(t *testing.T) {
			dirs, leaves, err := Plan(hs, tt.in, "")
			if (err != nil) != tt.err {
				t.Fatalf("Plan() = %v", err)
			}
			if diff := cmp.Diff([][]string{tt.dirs, tt.leaves}, [][]string{dirs, leaves}); diff != "" {
				t.Errorf("Plan() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAProcessIsPutInAndTheGroupsGo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	hs, err := Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	if len(hs) == 0 {
		t.Skip("no cgroups are mounted")
	}
	dirs, leaves, err := Plan(hs, "/coco-test-"+filepath.Base(t.TempDir())+"/x", VMM)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var made []string
	err = Apply(dirs, leaves, cmd.Process.Pid, func(d string) error { made = append(made, d); return nil })
	if err != nil {
		t.Errorf("Apply() = %v", err)
	}
	if diff := cmp.Diff(dirs, made); diff != "" {
		t.Errorf("made (-want +got):\n%s", diff)
	}
	for _, l := range leaves {
		if b, err := os.ReadFile(filepath.Join(l, "cgroup.procs")); err != nil || len(b) == 0 {
			t.Errorf("%s holds %q, %v, want the process", l, b, err)
		}
	}
	if err := errors.Join(LimitProcesses(leaves, 7),
		LimitDevices(leaves, Devices{Chars: []string{"/dev/null", "/dev/missing"}})); err != nil {
		t.Errorf("limits: %v", err)
	}
	for _, l := range leaves {
		for file, want := range map[string]string{"pids.max": "7\n", "devices.list": "c 1:3 rwm\n"} {
			if b, err := os.ReadFile(filepath.Join(l, file)); err == nil && string(b) != want {
				t.Errorf("%s/%s = %q, want %q", l, file, b, want)
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	for range 2 {
		if err := Remove(t.Context(), made); err != nil {
			t.Errorf("Remove() = %v", err)
		}
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is still there", d)
		}
	}
}
