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
		words  []string // of the shim's log, on what died and what it said last; a shim that is dead says nothing
		kill   func(t *testing.T, id string, shim, vmm int)
	}{
		{"shim", nil, func(t *testing.T, _ string, shim, _ int) { sigkill(t, shim) }},
		{"vmm", []string{"VMM ended: signal: killed", "console"}, func(t *testing.T, _ string, _, vmm int) {
			sigkill(t, vmm)
		}},
		{
			"agent",
			[]string{"the guest's kernel panicked", "last console lines", "Kernel panic - not syncing"},
			func(t *testing.T, id string, _, _ int) {
				// PID 1 of the guest ignores signals it has no handler for, even SIGKILL from
				// inside: a panic of the kernel is what its death looks like.
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				d.Ctr(ctx, "task", "exec", "--exec-id", "crash", id, "sh", "-c", "echo c > /host-proc/sysrq-trigger")
			},
		},
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
			log, err := d.Follow()
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			c.kill(t, id, shim, vmm)
			within(t, 5*time.Second, func() error {
				if s := statusOf(t, d, id); s != "STOPPED" && s != "absent" {
					return fmt.Errorf("containerd says %s", s)
				}
				return nil
			})
			if c.words != nil {
				wordsOfTheLog(t, log, id, c.words)
			}
			within(t, 5*time.Second, func() error {
				if s, v, _ := harness.Pids(id); v != 0 || (c.victim == "shim" && s != 0) {
					return fmt.Errorf("still running: shim %d, vmm %d", s, v)
				}
				return nil
			})
		})
	}
}

// wordsOfTheLog holds that the shim's log tells why a container ended.
func wordsOfTheLog(t *testing.T, log *harness.Follower, id string, words []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), truthTime)
	defer cancel()
	line, err := log.Until(ctx, func(l string) bool {
		return strings.Contains(l, id) && strings.Contains(l, "process ended with its VM")
	})
	if err != nil {
		t.Errorf("the log does not say why the container ended: %v", err)
	}
	for _, w := range words {
		if err == nil && !strings.Contains(line, w) {
			t.Errorf("the log does not hold %q: %s", w, line)
		}
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
