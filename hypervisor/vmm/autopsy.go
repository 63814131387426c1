// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vmm

import (
	"fmt"
	"io"

	"github.com/coco-shim/coco/hypervisor"
)

// Ending is how a VM ended, as far as its VMM reported it.
type Ending int

// The endings. The zero value says that the VMM reported none.
const (
	Unreported  Ending = iota
	SwitchedOff        // the guest switched itself off
	Restarted          // the guest restarted itself or crashed: its processor was reset
	Signalled          // the VMM got a signal that it could still report
)

// Cause is what a VMM reported about its end.
type Cause struct {
	Ending   Ending
	Panicked bool   // the guest reported that its kernel panicked
	Reason   string // why the VMM gave up by itself; "" if it did not
	Stderr   string // its standard error, as an error should quote it
}

// Follow reads the guest's console until it ends.
func (l *Life) Follow(r io.Reader) { l.Read(func() { l.console.Follow(r) }) }

// autopsy finds the reason of the VM's end. The VMM's exit status alone is not enough: it is 0 after a guest's panic.
func (l *Life) autopsy() *hypervisor.DeadError {
	l.mu.Lock()
	phase, why := l.phase, l.why
	l.mu.Unlock()
	cause := l.control.Cause(l.Proc.Stderr())
	e := &hypervisor.DeadError{VM: l.Spec.ID, Phase: phase, Stderr: cause.Stderr, Console: l.Console()}
	if e.Reason = why; why == "" {
		e.Reason = l.reason(phase, cause)
	}
	if phase != hypervisor.PhaseRun &&
		l.console.Mentions("Initramfs unpacking failed", "deadlocked on memory", "Out of memory") {
		e.Reason += fmt.Sprintf(" (%d MiB of memory are too little for this guest image)", l.Spec.MemoryMiB)
	}
	return e
}

// reason is that of a VM that this process did not end.
func (l *Life) reason(phase hypervisor.Phase, c Cause) string {
	words := l.console.Panicked()
	switch {
	case c.Reason != "":
		return c.Reason
	case words != "":
		return "the guest's kernel panicked: " + words
	case c.Panicked:
		return "the guest's kernel panicked"
	case c.Ending == Restarted && phase == hypervisor.PhaseKernel && l.console.Silent():
		return fmt.Sprintf("the guest crashed before its kernel printed anything: %d MiB of memory may be too little "+
			"for this kernel and initramfs", l.Spec.MemoryMiB)
	case c.Ending == Restarted:
		return "the guest crashed or restarted itself"
	case c.Ending == SwitchedOff:
		return "the guest switched itself off"
	case c.Ending == Signalled:
		return "VMM ended: somebody sent it a signal"
	}
	return "VMM ended: " + l.Proc.ExitStatus()
}
