// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package vmm is the part of a VM's life that does not depend on the kind of VMM that runs it as a process of this
// host: QEMU's and Cloud Hypervisor's drivers share it.
//
// A driver begins with a process that waits (Driver.Begin). Launch executes the VMM in it, and the VM passes the phases
// of package hypervisor: the driver calls Enter when its VMM reports one. Watch ends a VM whose agent does not answer
// in time or whose control connection broke. Abandon ends one that did not come up. Stop asks the VMM to quit and then
// kills it. However the VM ends, its console and events are read to their end within a bounded time, its resources are
// released, and Err tells the phase, the reason and the last console lines.
//
// A driver adds what only its kind of VMM has, by the interface Control: how the VMM is asked to quit, how a port of
// the guest is reached, what the VMM said about its end. A new duty of every VMM is a method of Control, and the
// compiler then asks each driver for it.
package vmm

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/console"
)

// Deadlines of each VMM.
const (
	// AnswerTimeout is how long a VMM has from execve to its first answer on the control connection. It takes 10 to
	// 100 ms on an idle host.
	AnswerTimeout = 15 * time.Second
	// QuitTimeout is how long a VMM has to end when it is asked to.
	QuitTimeout = 2 * time.Second
	// reapTimeout is how long the kernel has from SIGKILL to the end of the process.
	reapTimeout = 10 * time.Second
	// drainTimeout bounds the reading of a dead VMM's console and events, and the wait for the end of a VMM whose
	// connection broke.
	drainTimeout = time.Second
)

// Control is what a driver does with its kind of VMM.
type Control interface {
	// Lost is closed when the control connection has ended, as it does with the VMM. It is nil where no connection
	// stays open.
	Lost() <-chan struct{}
	// Ending reports whether a call failed with an error that the VMM's end causes.
	Ending(err error) bool
	// Quit asks the VMM to end.
	Quit(ctx context.Context) error
	// Connect connects to a port of the guest, which may still boot. ctx ends with the VMM. Errors name the port; one
	// that wraps ErrEnded says that the VMM has ended or is about to.
	Connect(ctx context.Context, port uint32) (net.Conn, error)
	// Cause tells what the VMM reported about its end. stderr is the tail of its standard error.
	Cause(stderr string) Cause
	// Release closes the connections and removes the files that the driver made for the VM. Readers end by it.
	Release()
}

// Life is a VM from the execve of its VMM to its end. It is the part of hypervisor.VM that all drivers share.
type Life struct {
	Spec hypervisor.VMSpec
	Proc hypervisor.Process
	Log  *slog.Logger

	control Control
	console console.Tail
	readers sync.WaitGroup
	booted  chan struct{} // closed when the agent has answered for the first time
	done    chan struct{} // closed when all is gone and err is final

	mu    sync.Mutex
	phase hypervisor.Phase // guarded by mu
	why   string           // guarded by mu; why this process ended the VM
	err   error            // guarded by mu
}

// NewLife makes the life of a VM in phase vmm.
func NewLife(c Control, spec hypervisor.VMSpec, proc hypervisor.Process, log *slog.Logger) *Life {
	return &Life{
		Spec: spec, Proc: proc, Log: log, control: c, phase: hypervisor.PhaseVMM,
		booted: make(chan struct{}), done: make(chan struct{}),
	}
}

// ID is the sandbox's id.
func (l *Life) ID() string { return l.Spec.ID }

// Done is closed once the VMM is gone and Err is final.
func (l *Life) Done() <-chan struct{} { return l.done }

// Err returns the reason of the VM's end.
func (l *Life) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Console returns the guest's last lines.
func (l *Life) Console() []string { return l.console.Lines() }

var phases = []hypervisor.Phase{hypervisor.PhaseVMM, hypervisor.PhaseKernel, hypervisor.PhaseAgent, hypervisor.PhaseRun}

// Enter moves to a later phase; earlier ones are ignored.
func (l *Life) Enter(p hypervisor.Phase) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Index(phases, p) <= slices.Index(phases, l.phase) {
		return
	}
	l.phase = p
	if p == hypervisor.PhaseRun {
		close(l.booted)
	}
}

// Phase is the phase that was reached.
func (l *Life) Phase() hypervisor.Phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase
}

// Read runs fn, which reads from the VMM until the stream ends, and collects it at the VM's end.
func (l *Life) Read(fn func()) { l.readers.Go(fn) }

// Empty takes away from the VMM's root what only its start needs. The driver calls it once the VMM has opened all that
// it opens by name.
func (l *Life) Empty() error {
	if e, ok := l.Proc.(hypervisor.Emptier); ok {
		return e.Empty()
	}
	return nil
}

// Watch begins to watch over a VM that was launched, until it ends.
func (l *Life) Watch() { go l.watch() }

func (l *Life) watch() {
	timer := time.NewTimer(l.Spec.BootTimeout)
	defer timer.Stop()
	booted, deadline := l.booted, timer.C
	for alive := true; alive; {
		select {
		case <-booted:
			booted, deadline = nil, nil
		case <-deadline:
			l.Kill(fmt.Sprintf("the agent did not answer within %v", l.Spec.BootTimeout))
			booted, deadline = nil, nil
		case <-l.control.Lost():
			if l.AwaitEnd(); !l.Dead() {
				l.Kill("the control connection to the VMM broke")
			}
			alive = false
		case <-l.Proc.Done():
			alive = false
		}
	}
	<-l.Proc.Done()
	l.bury()
	err := l.autopsy()
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	l.Log.Info("VM has ended", "vm", l.Spec.ID, "phase", string(err.Phase), "reason", err.Reason)
	close(l.done)
}

// Kill ends the VMM for a reason that Err will give; "" leaves the reason to the VMM's own report.
func (l *Life) Kill(why string) {
	l.blame(why)
	if err := l.Proc.Kill(); err != nil {
		l.Log.Error("VMM cannot be killed", "vm", l.Spec.ID, "error", err)
	}
}

// blame notes why the VM ends, unless there is a reason already.
func (l *Life) blame(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == "" {
		l.why = why
	}
}

// bury reads the rest of what a dead VMM wrote, and releases everything. Another process may still hold the VMM's
// descriptors, so the reading is bounded.
func (l *Life) bury() {
	read := make(chan struct{})
	go func() { // ends with the readers, which Release ends
		l.readers.Wait()
		close(read)
	}()
	streams := []<-chan struct{}{read}
	if lost := l.control.Lost(); lost != nil {
		streams = append(streams, lost)
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	for _, ch := range streams {
		select {
		case <-ch:
		case <-ctx.Done():
		}
	}
	l.control.Release()
	<-read
}

// Abandon ends a VMM whose VM did not come up, and returns why. Watch must not have been called.
func (l *Life) Abandon(cause error) error {
	if l.control.Ending(cause) {
		l.AwaitEnd()
	}
	died := l.Dead() // by itself
	_ = l.Proc.Kill()
	<-l.Proc.Done()
	l.bury()
	e := l.autopsy()
	if died { // its end tells more than the call that met it
		e.Reason += fmt.Sprintf(" (%v)", cause)
	} else {
		e.Reason = cause.Error()
	}
	return e
}

// Dead reports whether the VMM's process has ended.
func (l *Life) Dead() bool { return ended(l.Proc.Done()) }

// AwaitEnd waits shortly for the end of a VMM that seems to be ending.
func (l *Life) AwaitEnd() {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-l.Proc.Done():
	case <-timer.C:
	}
}

// OrDead returns the reason of the VM's end instead of the error of a call that failed by it.
func (l *Life) OrDead(err error) error {
	if l.control.Ending(err) {
		l.AwaitEnd()
	}
	if !l.Dead() && !ended(l.control.Lost()) {
		return err
	}
	<-l.done // soon
	return l.Err()
}

// Stop ends the VM without the guest's cooperation. For an orderly end the caller asks the agent first.
func (l *Life) Stop(ctx context.Context) error {
	if ended(l.done) {
		return nil
	}
	l.blame("stopped on request")
	qctx, cancel := context.WithTimeout(ctx, QuitTimeout)
	defer cancel()
	// An error means that it is gone, or hangs and is killed now.
	if err := l.control.Quit(qctx); err == nil {
		select {
		case <-l.done:
			return nil
		case <-qctx.Done():
		}
	}
	if err := l.Proc.Kill(); err != nil {
		return fmt.Errorf("stop VM %s: %w", l.Spec.ID, err)
	}
	timer := time.NewTimer(reapTimeout)
	defer timer.Stop()
	select {
	case <-l.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("stop VM %s: process %d is still there %v after SIGKILL", l.Spec.ID, l.Proc.PID(), reapTimeout)
	}
}
