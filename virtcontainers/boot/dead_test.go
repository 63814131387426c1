// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
)

// reaped is a process whose Done is closed when its parent has reaped it.
type reaped struct {
	hypervisor.Pending
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *reaped) PID() int              { return p.cmd.Process.Pid }
func (p *reaped) Done() <-chan struct{} { return p.done }
func (p *reaped) Err() error            { return &hypervisor.DeadError{VM: "c1", Reason: "it was killed"} }

// TestAStepThatMeetsADyingVMMNamesItsDeath: its namespaces are gone before Done is closed.
func TestAStepThatMeetsADyingVMMNamesItsDeath(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &reaped{cmd: cmd, done: make(chan struct{})}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It is a zombie from here on.
	if err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	_, met := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.PID()))
	if met == nil {
		t.Fatal("a dead process has a network namespace")
	}
	c := &creation{Machine: &Machine{Place: p}, opts: Options{ID: "c1"}}
	said := make(chan error)
	go func() { said <- c.orDead("network", fmt.Errorf("open network namespace: %w", met)) }()
	_ = cmd.Wait() // it was killed
	close(p.done)
	err := <-said
	var dead *hypervisor.DeadError
	if !errors.As(err, &dead) || !errors.Is(err, met) {
		t.Errorf("orDead() = %v, want it to name the death and the step's error", err)
	}

	alive := &creation{Machine: &Machine{Place: &reaped{cmd: cmd, done: make(chan struct{})}}}
	other := &os.PathError{Op: "open", Path: "/nowhere", Err: unix.ENOENT}
	if err := alive.orDead("network", other); errors.As(err, &dead) {
		t.Errorf("orDead() = %v of a process that lives", err)
	}
}
