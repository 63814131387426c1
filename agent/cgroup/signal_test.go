// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The group is one that stands still already, as a paused container's: freezing is the kernel's, and tested in a VM.
func TestASignalReachesEveryProcessOfTheGroup(t *testing.T) {
	var cmds []*exec.Cmd
	pids := "0\n1\n"
	for range 2 {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, c)
		pids += fmt.Sprintln(c.Process.Pid)
	}
	g := tree(t, map[string]string{"cgroup.events": "populated 1\nfrozen 1\n", "cgroup.procs": "0\n"})
	below := filepath.Join(g.Dir(), "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(pids), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Signal(t.Context(), unix.SIGTERM); err != nil {
		t.Error(err)
	}
	for _, c := range cmds {
		var exit *exec.ExitError
		err := c.Wait()
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM {
			t.Errorf("process %d: %v, want SIGTERM", c.Process.Pid, err)
		}
	}
	if err := g.Signal(t.Context(), unix.SIGTERM); err != nil {
		t.Errorf("processes that are gone: %v", err)
	}
	if err := At(t.TempDir(), "/gone").Signal(t.Context(), unix.SIGTERM); err != nil {
		t.Errorf("a group that is gone: %v", err)
	}
}
