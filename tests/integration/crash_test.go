// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

func TestContainerdRestartsUnderARunningContainer(t *testing.T) {
	for _, v := range []string{"1.6", primary} {
		t.Run(v, func(t *testing.T) {
			d := daemon(t, v)
			noLeaks(t)
			id := detached(t, d, harness.Runtime, "sh", "-c", "trap 'exit 6' TERM; touch /up; while :; do sleep 0.1; done")
			must(t, d, "task", "exec", "--exec-id", "w", id, "sh", "-c", "until [ -e /up ]; do sleep 0.05; done")
			d.Kill()
			if err := d.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := statusOf(t, d, id); got != "RUNNING" {
				t.Fatalf("after the restart the task is %s, want RUNNING", got)
			}
			if got := must(t, d, "task", "exec", "--exec-id", "e", id, "echo", "still here"); got != "still here\n" {
				t.Errorf("exec after the restart printed %q", got)
			}
			must(t, d, "task", "kill", "-s", "SIGTERM", id)
			if code := waitStopped(t, d, id); code != 6 {
				t.Errorf("exit code after the restart = %d, want 6", code)
			}
		})
	}
}

func TestKillOfShimVMMOrAgentWhileRunning(t *testing.T) {
	d := daemon(t, primary)
	for _, c := range []struct {
		victim string
		kill   func(t *testing.T, id string, shim, vmm int)
	}{
		{"shim", func(t *testing.T, _ string, shim, _ int) { sigkill(t, shim) }},
		{"vmm", func(t *testing.T, _ string, _, vmm int) { sigkill(t, vmm) }},
		{"agent", func(t *testing.T, id string, _, _ int) {
			// PID 1 of the guest ignores signals it has no handler for, even SIGKILL from
			// inside: a panic of the kernel is what its death looks like.
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			d.Ctr(ctx, "task", "exec", "--exec-id", "crash", id, "sh", "-c", "echo c > /host-proc/sysrq-trigger")
		}},
	} {
		t.Run(c.victim, func(t *testing.T) {
			noLeaks(t)
			args := []string{"sleep", "1000"}
			if c.victim == "agent" {
				args = []string{"--mount", "type=proc,src=proc,dst=/host-proc,options=rw", "--", "sleep", "1000"}
			}
			id := detached(t, d, harness.Runtime, args...)
			shim, vmm, err := harness.Pids(id)
			if err != nil {
				t.Fatal(err)
			}
			c.kill(t, id, shim, vmm)
			within(t, 5*time.Second, func() error {
				if s := statusOf(t, d, id); s != "STOPPED" && s != "absent" {
					return fmt.Errorf("containerd says %s", s)
				}
				return nil
			})
			within(t, 5*time.Second, func() error {
				if s, v, _ := harness.Pids(id); v != 0 || (c.victim == "shim" && s != 0) {
					return fmt.Errorf("still running: shim %d, vmm %d", s, v)
				}
				return nil
			})
		})
	}
}

func sigkill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// within retries a check until it passes; the state of another process has no event to wait for.
func within(t *testing.T, patience time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after %v: %v", patience, err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestKillDuringStart kills the shim or the VMM at moments spread over the start of a container. The
// start may win or lose the race; whatever happens, nothing stays and the error says what died.
func TestKillDuringStart(t *testing.T) {
	d := daemon(t, primary)
	for _, victim := range []string{"shim", "vmm"} {
		for _, after := range []time.Duration{0, 700 * time.Millisecond, 2 * time.Second} {
			t.Run(fmt.Sprintf("%s after %v", victim, after), func(t *testing.T) {
				noLeaks(t)
				id := newID(t)
				t.Cleanup(func() { remove(t, d, id) })
				ctx, cancel := context.WithTimeout(t.Context(), perCommand)
				defer cancel()
				done := make(chan harness.Result, 1)
				go func() {
					done <- d.Ctr(ctx, "run", "-d", "--runtime", harness.Runtime, harness.Image, id, "sleep", "1000")
				}()
				pid := 0
				within(t, 10*time.Second, func() error {
					shim, vmm, _ := harness.Pids(id)
					if victim == "vmm" {
						pid = vmm
					} else {
						pid = shim
					}
					if pid == 0 {
						return fmt.Errorf("no %s yet", victim)
					}
					return nil
				})
				time.Sleep(after) // the moment of the crash is the variable of this test
				_ = syscall.Kill(pid, syscall.SIGKILL)
				r := <-done
				if victim == "vmm" && r.Code != 0 && !strings.Contains(r.Stderr, "killed") {
					t.Errorf("the error does not say that the VMM was killed: %s", r.Stderr)
				}
			})
		}
	}
}
