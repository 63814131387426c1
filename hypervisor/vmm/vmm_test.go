// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vmm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const agentPort = contract.PortAgent

var errBroken = errors.New("the control connection is closed")

// process is a process in memory.
type process struct {
	once    sync.Once
	done    chan struct{}
	immune  bool  // SIGKILL does not end it
	refuses error // of Kill
	status  string
	emptied error
}

func newProcess() *process { return &process{done: make(chan struct{}), status: "signal: killed"} }

func (p *process) PID() int              { return 4711 }
func (p *process) Done() <-chan struct{} { return p.done }
func (p *process) ExitStatus() string    { return p.status }
func (p *process) Stderr() string        { return "last words" }
func (p *process) Empty() error          { return p.emptied }
func (p *process) Exec(context.Context, []string, []string, []*os.File) error {
	return nil
}

func (p *process) Kill() error {
	if p.refuses == nil && !p.immune {
		p.end()
	}
	return p.refuses
}

func (p *process) end() { p.once.Do(func() { close(p.done) }) }

// control is a VMM in memory, whose console is a pipe.
type control struct {
	*Life
	proc     *process
	lost     chan struct{} // nil: no connection stays open
	quit     func(context.Context) error
	connect  func(context.Context) (net.Conn, error)
	cause    Cause
	console  *io.PipeWriter
	end      *io.PipeReader
	released bool
}

func newControl(boot time.Duration) *control {
	c := &control{proc: newProcess()}
	c.end, c.console = io.Pipe()
	c.Life = NewLife(c, hypervisor.VMSpec{ID: "pod", MemoryMiB: 128, BootTimeout: boot}, c.proc,
		slog.New(slog.DiscardHandler))
	c.Follow(c.end)
	return c
}

func (c *control) Lost() <-chan struct{} {
	if c.lost == nil {
		return nil
	}
	return c.lost
}

func (c *control) Ending(err error) bool { return errors.Is(err, errBroken) }

func (c *control) Quit(ctx context.Context) error {
	if c.quit == nil {
		c.proc.end()
		return nil
	}
	return c.quit(ctx)
}

func (c *control) Connect(ctx context.Context, _ uint32) (net.Conn, error) {
	if c.connect == nil {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return c.connect(ctx)
}

func (c *control) Cause(stderr string) Cause {
	cause := c.cause
	cause.Stderr = stderr
	return cause
}

func (c *control) Release() {
	c.released = true
	_ = c.end.Close() // a pipe in memory
}

// reason is that of a dead VM.
func reason(t *testing.T, err error) *hypervisor.DeadError {
	t.Helper()
	var dead *hypervisor.DeadError
	if !errors.As(err, &dead) {
		t.Fatalf("error = %v, want a DeadError", err)
	}
	return dead
}

func TestWhatAVMsEndIsCalled(t *testing.T) {
	panicked := "x\nKernel panic - not syncing: no root\n"
	for _, tt := range []struct {
		name, says string
		phase      hypervisor.Phase
		cause      Cause
		want       string
	}{
		{"nothing is known", "x\n", hypervisor.PhaseRun, Cause{}, "VMM ended: signal: killed"},
		{"switched off", "x\n", hypervisor.PhaseRun, Cause{Ending: SwitchedOff}, "the guest switched itself off"},
		{"off in silence", "", hypervisor.PhaseKernel, Cause{Ending: SwitchedOff}, "the guest switched itself off"},
		{"reset", "x\n", hypervisor.PhaseKernel, Cause{Ending: Restarted}, "the guest crashed or restarted itself"},
		{
			"reset in silence", "", hypervisor.PhaseKernel,
			Cause{Ending: Restarted},
			"the guest crashed before its kernel printed anything: 128 MiB of memory may be too little for this kernel and " +
				"initramfs",
		},
		{"later reset", "", hypervisor.PhaseRun, Cause{Ending: Restarted}, "the guest crashed or restarted itself"},
		{"signal", "x\n", hypervisor.PhaseRun, Cause{Ending: Signalled}, "VMM ended: somebody sent it a signal"},
		{
			"panic on the console", panicked, hypervisor.PhaseRun,
			Cause{Ending: Restarted},
			"the guest's kernel panicked: no root",
		},
		{"panic by event", "x\n", hypervisor.PhaseRun, Cause{Panicked: true}, "the guest's kernel panicked"},
		{"the VMM's own", panicked, hypervisor.PhaseRun, Cause{Reason: "vcpu 0 failed"}, "vcpu 0 failed"},
		{
			"memory", "Initramfs unpacking failed: write error\n", hypervisor.PhaseKernel,
			Cause{Ending: Restarted},
			"the guest crashed or restarted itself (128 MiB of memory are too little for this guest image)",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newControl(time.Hour)
			c.cause = tt.cause
			c.Enter(tt.phase)
			c.Watch()
			if _, err := io.WriteString(c.console, tt.says); err != nil {
				t.Fatal(err)
			}
			_ = c.console.Close() // a pipe in memory
			c.proc.end()
			<-c.Done()
			if got := reason(t, c.Err()); got.Reason != tt.want || got.Phase != tt.phase || got.Stderr != "last words" {
				t.Errorf("Err() = %+v, want phase %s and %q", got, tt.phase, tt.want)
			}
			if !c.released {
				t.Error("nothing was released")
			}
		})
	}
}

func TestPhasesOnlyGoForward(t *testing.T) {
	c := newControl(time.Hour)
	defer c.Release()
	for _, p := range []struct{ enter, want hypervisor.Phase }{
		{hypervisor.PhaseKernel, hypervisor.PhaseKernel},
		{hypervisor.PhaseRun, hypervisor.PhaseRun},
		{hypervisor.PhaseAgent, hypervisor.PhaseRun},
		{hypervisor.PhaseRun, hypervisor.PhaseRun},
		{"another", hypervisor.PhaseRun},
	} {
		if c.Enter(p.enter); c.Phase() != p.want {
			t.Errorf("phase = %s after %s, want %s", c.Phase(), p.enter, p.want)
		}
	}
}

func TestTheAgentHasUntilTheBootTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(time.Minute)
		began := time.Now()
		c.Watch()
		c.Enter(hypervisor.PhaseAgent)
		<-c.Done()
		// The console stays open, so its reader is ended after a second.
		if got := reason(t, c.Err()); got.Reason != "the agent did not answer within 1m0s" ||
			got.Phase != hypervisor.PhaseAgent || time.Since(began) != time.Minute+drainTimeout {
			t.Errorf("Err() = %v after %v", got, time.Since(began))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := newControl(time.Minute)
		c.Watch()
		c.Enter(hypervisor.PhaseRun)
		time.Sleep(time.Hour)
		if err := c.Err(); err != nil {
			t.Errorf("Err() of a VM whose agent answered = %v", err)
		}
		if err := c.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestAVMMWhoseConnectionBreaks(t *testing.T) {
	for name, tt := range map[string]struct {
		ends bool
		want string
		took time.Duration
	}{
		"ends":     {true, "VMM ended: signal: killed", time.Second / 2},
		"lives on": {false, "the control connection to the VMM broke", drainTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newControl(time.Hour)
				c.lost = make(chan struct{})
				_ = c.console.Close() // a pipe in memory
				c.Watch()
				began := time.Now()
				close(c.lost)
				if tt.ends {
					time.AfterFunc(tt.took, c.proc.end)
				}
				<-c.Done()
				if got := reason(t, c.Err()); got.Reason != tt.want || time.Since(began) != tt.took {
					t.Errorf("Err() = %v after %v, want %q after %v", got, time.Since(began), tt.want, tt.took)
				}
			})
		})
	}
}

// Another process holds the VMM's console and its control connection: both together cost one second.
func TestDescriptorsThatSomebodyHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(time.Hour)
		c.lost = make(chan struct{})
		c.Watch()
		began := time.Now()
		c.proc.end()
		<-c.Done()
		if d := time.Since(began); d != drainTimeout {
			t.Errorf("Done() came after %v, want %v", d, drainTimeout)
		}
	})
}

func TestStop(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
	for _, tt := range []struct {
		name   string
		change func(*control)
		took   time.Duration
		want   string
	}{
		{"it quits", func(*control) {}, 0, ""},
		{"it refuses", func(c *control) { c.quit = func(context.Context) error { return errBroken } }, 0, ""},
		{"it hangs", func(c *control) { c.quit = hang }, QuitTimeout, ""},
		{"it answers and stays", func(c *control) {
			c.quit = func(context.Context) error { return nil }
		}, QuitTimeout, ""},
		{"it cannot be killed", func(c *control) {
			c.quit, c.proc.refuses = hang, errors.New("not permitted")
		}, QuitTimeout, "stop VM pod: not permitted"},
		{"the kernel does not end it", func(c *control) {
			c.quit, c.proc.immune = hang, true
		}, QuitTimeout + reapTimeout, "process 4711 is still there 10s after SIGKILL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newControl(time.Hour)
				_ = c.console.Close() // a pipe in memory
				tt.change(c)
				c.Watch()
				began := time.Now()
				err := c.Stop(t.Context())
				if took := time.Since(began); took != tt.took || (err == nil) != (tt.want == "") ||
					err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Stop() = %v after %v, want %q after %v", err, took, tt.want, tt.took)
				}
				c.proc.end()
				<-c.Done()
				if got := reason(t, c.Err()); got.Reason != "stopped on request" {
					t.Errorf("Err() = %v", got)
				}
				if err := c.Stop(t.Context()); err != nil {
					t.Errorf("Stop() of a dead VM = %v", err)
				}
			})
		})
	}
}

func TestAbandonTellsTheCallAndTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ends  time.Duration // by itself, after the call failed; 0: not
		cause error
		want  string
		took  time.Duration
	}{
		{"it lives", 0, errors.New("vm.create: no"), "vm.create: no", 0},
		{"it hangs", 0, errBroken, errBroken.Error(), drainTimeout},
		{"it dies", time.Millisecond, errBroken, "VMM ended: exit status 1 (" + errBroken.Error() + ")", time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newControl(time.Hour)
				c.proc.status = "exit status 1"
				_ = c.console.Close() // a pipe in memory
				if tt.ends > 0 {
					time.AfterFunc(tt.ends, c.proc.end)
				}
				began := time.Now()
				err := c.Abandon(tt.cause)
				if got := reason(t, err); got.Reason != tt.want || got.Phase != hypervisor.PhaseVMM ||
					time.Since(began) != tt.took {
					t.Errorf("Abandon() = %v after %v, want %q after %v", got, time.Since(began), tt.want, tt.took)
				}
				if !c.Dead() || !c.released {
					t.Errorf("dead %v, released %v", c.Dead(), c.released)
				}
			})
		})
	}
}

func TestACallThatFailsByTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(time.Hour)
		_ = c.console.Close() // a pipe in memory
		c.Watch()
		other := errors.New("no such device")
		if err := c.OrDead(other); !errors.Is(err, other) {
			t.Errorf("OrDead() while it runs = %v", err)
		}
		if err := c.OrDead(errBroken); !errors.Is(err, errBroken) {
			t.Errorf("OrDead() of a VMM that goes on = %v", err)
		}
		time.AfterFunc(time.Millisecond, c.proc.end)
		reason(t, c.OrDead(errBroken))
		reason(t, c.OrDead(other))
	})
}

func TestDial(t *testing.T) {
	ctx := t.Context()
	t.Run("succeeds", func(t *testing.T) {
		c := newControl(time.Hour)
		defer c.Release()
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c.connect = func(context.Context) (net.Conn, error) { return ours, nil }
		conn, err := c.Dial(ctx, agentPort)
		if err != nil || c.Phase() != hypervisor.PhaseRun {
			t.Fatalf("Dial() = %v, in phase %s", err, c.Phase())
		}
		_ = conn.Close() // nothing was sent
	})
	t.Run("gives up with its context", func(t *testing.T) {
		c := newControl(time.Hour)
		defer c.Release()
		c.Enter(hypervisor.PhaseKernel)
		ended, end := context.WithCancel(ctx)
		end()
		_, err := c.Dial(ended, agentPort)
		if got := reason(t, err); !errors.Is(err, context.Canceled) || got.Phase != hypervisor.PhaseKernel ||
			got.Reason != "the agent has not answered yet" {
			t.Errorf("Dial() = %v", err)
		}
	})
	t.Run("is refused", func(t *testing.T) {
		c := newControl(time.Hour)
		defer c.Release()
		c.Enter(hypervisor.PhaseRun)
		c.connect = func(context.Context) (net.Conn, error) { return nil, errors.New("dial guest port 9: nobody") }
		if _, err := c.Dial(ctx, 9); err == nil || err.Error() != "VM pod: dial guest port 9: nobody" {
			t.Errorf("Dial() = %v", err)
		}
	})
	t.Run("meets the end", func(t *testing.T) {
		for _, told := range []error{nil, ErrEnded} { // nil: Connect waits until its context ends
			c := newControl(time.Hour)
			if told != nil {
				c.connect = func(context.Context) (net.Conn, error) { return nil, told }
			}
			_ = c.console.Close() // a pipe in memory
			c.Watch()
			time.AfterFunc(10*time.Millisecond, c.proc.end)
			_, err := c.Dial(ctx, agentPort)
			if got := reason(t, err); got.Reason != "VMM ended: signal: killed" {
				t.Errorf("Dial() = %v", err)
			}
			<-c.Done()
		}
	})
}

func TestARemovalIsWaitedForAgain(t *testing.T) {
	var r Removals
	r.Gone("never expected")
	first := r.Expect("disk")
	if again := r.Expect("disk"); again != first {
		t.Error("the second wait is for something else")
	}
	other := r.Expect("net")
	r.Gone("disk")
	if <-first; ended(other) {
		t.Error("another device's removal ended the wait")
	}
	if next := r.Expect("disk"); ended(next) {
		t.Error("a device that was plugged in again is gone at once")
	}
}

func TestEmpty(t *testing.T) {
	c := newControl(time.Hour)
	defer c.Release()
	c.proc.emptied = errBroken
	if err := c.Empty(); !errors.Is(err, errBroken) {
		t.Errorf("Empty() = %v", err)
	}
}
