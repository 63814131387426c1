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

// truthTime is how soon containerd has to know what is the case.
const truthTime = 5 * time.Second

// lastOfStart is in the log's line of the last step of a start.
const lastOfStart = "step=start "

// moment is a place in a pod's life, known by the line of the shim's log that comes just before it.
type moment struct {
	name, line string
	noVMM      bool // there is none yet, or no more
	console    bool // the guest runs: an error tells what it printed last
}

// Moments of a start and of an end. The shim's log tells each step when it is done.
var (
	startMoments = []moment{
		{"nothing is made", "step=shape ", true, false},
		{"journal written, namespace being made", "step=journal ", true, false},
		{"launcher being forked", `step="network namespace"`, true, false},
		{"launcher waits", "step=launcher ", false, false},
		{"taps made, VMM being executed", "step=network ", false, false},
		{"VM boots", "step=vmm ", false, true},
		{"agent answers, sandbox being made", "step=agent ", false, true},
		{"layers being plugged", "step=sandbox ", false, true},
		{"container being created", "step=streams ", false, true},
		{"container created", "step=create ", false, true},
		{"container started", lastOfStart, false, true},
	}
	stopMoments = []moment{
		{"kill requested", "msg=signal ", false, true},
		{"exit seen", "msg=exit ", false, true},
		{"VM being ended", `msg="pod ends"`, false, true},
		{"the rest being given back", `msg="VM has ended, the rest is given back"`, true, true},
	}
)

// reach waits for a moment of a pod and returns its shim and its VMM, or the launcher that becomes it.
func reach(ctx context.Context, t *testing.T, f *harness.Follower, id string, m moment) (shim, vmm int) {
	t.Helper()
	has := func(what string) func(string) bool {
		return func(line string) bool { return strings.Contains(line, id) && strings.Contains(line, what) }
	}
	if m.line != startMoments[0].line {
		if _, err := f.Until(ctx, has(m.line)); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
	}
	shim, vmm, _ = harness.Pids(id)
	if vmm == 0 && !m.noVMM {
		for _, pid := range harness.Children(shim) {
			vmm = pid
		}
	}
	return shim, vmm
}

// strike kills the victim and returns when.
func strike(t *testing.T, victim string, m moment, shim, vmm int) time.Time {
	t.Helper()
	pid := shim
	if victim == "vmm" {
		pid = vmm
	}
	if pid == 0 {
		t.Fatalf("%s: no %s", m.name, victim)
	}
	sigkill(t, pid)
	return time.Now()
}

// TestKillAtEachMomentOfAStart kills shim or VMM, of a VM that boots and of one that starts from a template. ctr learns
// it at once and in words, and nothing is left.
func TestKillAtEachMomentOfAStart(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	bothWays(t, func(t *testing.T, flags []string) { killAtEachMoment(t, d, flags) })
}

// killAtEachMoment does so with the pods of these flags of ctr run.
func killAtEachMoment(t *testing.T, d *harness.Daemon, flags []string) {
	t.Helper()
	for _, m := range startMoments {
		for _, victim := range []string{"shim", "vmm"} {
			if victim == "vmm" && m.noVMM {
				continue
			}
			t.Run(m.name+"/"+victim, func(t *testing.T) {
				t.Parallel()
				id := newID(t)
				t.Cleanup(func() { remove(t, d, id) })
				ctx, cancel := context.WithTimeout(t.Context(), perCommand)
				defer cancel()
				f, err := d.Follow()
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				done := make(chan harness.Result, 1)
				go func() {
					args := append([]string{"run", "-d", "--runtime", harness.Runtime}, flags...)
					done <- d.Ctr(ctx, append(args, harness.Image, id, "sleep", "1000")...)
				}()
				// The shim is there with its first step.
				if _, err := f.Until(ctx, func(l string) bool {
					return strings.Contains(l, id) && strings.Contains(l, startMoments[0].line)
				}); err != nil {
					t.Fatal(err, <-done)
				}
				shim, vmm := reach(ctx, t, f, id, m)
				killed := strike(t, victim, m, shim, vmm)
				r := <-done
				if took := time.Since(killed); took > truthTime {
					t.Errorf("ctr learnt it after %v", took)
				}
				t.Logf("exit %d after %v: %s", r.Code, time.Since(killed).Round(time.Millisecond), r.Stderr)
				if r.Code == 0 && m.line != lastOfStart && !startedBefore(ctx, t, f, id, killed) {
					t.Errorf("the container was started all the same")
				}
				if victim == "vmm" && r.Code != 0 {
					namesTheDead(t, r.Stderr, m.console)
				}
				settles(t, d, id)
			})
		}
	}
}

// startedBefore tells whether the shim had logged the end of a start that succeeded when it or its VMM was killed: on a
// busy machine the start goes on while the test reads the log and sends the signal.
func startedBefore(ctx context.Context, t *testing.T, f *harness.Follower, id string, killed time.Time) bool {
	t.Helper()
	line, err := f.Until(ctx, func(l string) bool { return strings.Contains(l, id) && strings.Contains(l, lastOfStart) })
	if err != nil {
		t.Fatal(err)
	}
	_, stamp, _ := strings.Cut(line, "time=")
	stamp, _, _ = strings.Cut(stamp, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		t.Fatalf("the time of %s: %v", line, err)
	}
	t.Logf("the moment had passed: the start ended %v before the kill", killed.Sub(at).Round(time.Microsecond))
	return at.Before(killed)
}

// namesTheDead holds that an error says that the VMM was killed, and what the guest printed last.
func namesTheDead(t *testing.T, text string, console bool) {
	t.Helper()
	if !strings.Contains(text, "signal: killed") {
		t.Errorf("the error does not say that the VMM was killed: %s", text)
	}
	if console && !strings.Contains(text, "last console lines") &&
		!strings.Contains(text, "printed nothing on its console") {
		t.Errorf("the error does not show the console: %s", text)
	}
}

// settles holds that containerd soon says that the container does not run.
func settles(t *testing.T, d *harness.Daemon, id string) {
	t.Helper()
	within(t, truthTime, func() error {
		if s := statusOf(t, d, id); s != "STOPPED" && s != "absent" {
			return fmt.Errorf("containerd says %s", s)
		}
		return nil
	})
}

// TestKillAtEachMomentOfAStop kills shim or VMM while a container is being removed.
func TestKillAtEachMomentOfAStop(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	for _, m := range stopMoments {
		for _, victim := range []string{"shim", "vmm"} {
			if victim == "vmm" && m.noVMM {
				continue
			}
			t.Run(m.name+"/"+victim, func(t *testing.T) {
				t.Parallel()
				id := detached(t, d, harness.Runtime, "sleep", "1000")
				ctx, cancel := context.WithTimeout(t.Context(), perCommand)
				defer cancel()
				f, err := d.Follow()
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				shim, vmm, err := harness.Pids(id)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan harness.Result, 1)
				go func() { done <- d.Ctr(ctx, "task", "rm", "-f", id) }()
				if _, err := f.Until(ctx, func(l string) bool {
					return strings.Contains(l, id) && strings.Contains(l, m.line)
				}); err != nil {
					t.Fatal(err)
				}
				pid := shim
				if victim == "vmm" {
					pid = vmm
				}
				gone := syscall.Kill(pid, syscall.SIGKILL) // the VMM may have ended by now
				killed := time.Now()
				r := <-done
				t.Logf("kill: %v; exit %d after %v: %s", gone, r.Code, time.Since(killed).Round(time.Millisecond), r.Stderr)
				if took := time.Since(killed); took > truthTime {
					t.Errorf("ctr came to its end after %v", took)
				}
				if victim == "vmm" && r.Code != 0 {
					t.Errorf("the removal failed because what it ends has ended: %s", r.Stderr)
				}
				settles(t, d, id)
			})
		}
	}
}
