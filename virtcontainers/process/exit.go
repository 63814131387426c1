// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/pulse"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

const (
	killedCode  = 128 + Sigkill // exit code of a process that died with the VM
	unknownCode = 255           // the process never ran, or the agent lost its status
)

// ExitStatus says how and when a process ended. Reason is set when it ended because the VM did.
type ExitStatus struct {
	Code   uint32
	At     time.Time
	Reason string
}

// KilledWith is the exit of a process whose VM has ended, for a reason.
func KilledWith(reason error) ExitStatus { return ExitStatus{Code: killedCode, Reason: reason.Error()} }

// Wait returns when the process has ended. Any number of callers may wait.
func (p *Process) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.done:
		_, exit := p.State()
		return exit, nil
	case <-ctx.Done():
		return ExitStatus{}, fmt.Errorf("wait for %s: %w", p, context.Cause(ctx))
	}
}

// Settle publishes the exit, once. The first to know wins; the VM's death does not overrule a code
// that the guest has reported and that only waits for the output.
func (p *Process) Settle(exit ExitStatus, fromVM bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settled || fromVM && p.known {
		return
	}
	if err := p.toLocked(evExited); err != nil {
		panic(err) // the table takes an exit in every state
	}
	p.settleLocked(exit)
}

func (p *Process) settleLocked(exit ExitStatus) {
	exit.At = time.Now()
	p.exit, p.settled = exit, true
	p.reported.set()
	close(p.done)
}

// startFailed ends a process that never ran.
func (p *Process) startFailed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.toLocked(evStartFailed); err != nil || p.settled {
		return
	}
	p.settleLocked(ExitStatus{Code: unknownCode})
}

// await asks the guest for the exit, from a goroutine of the pod.
func (p *Process) await() {
	if !p.pod.Spawn(p.awaitExit) {
		p.Settle(KilledWith(p.pod.Ended), true)
	}
}

func (p *Process) awaitExit(ctx context.Context) {
	p.mu.Lock()
	s := p.streams
	p.mu.Unlock()
	if s != nil {
		s.AwaitRead(ctx, p.killed.c)
	}
	res, err := p.pod.Agent.WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: p.id.Container, ExecId: p.id.Exec})
	switch {
	case err == nil:
		p.drain(ctx)
		p.fetchMessage(ctx)
		if p.owner.Ended != nil {
			p.owner.Ended(ctx)
		}
		p.Settle(exitTold(res.GetStatus()), false)
	case ctx.Err() != nil:
		p.Settle(KilledWith(context.Cause(ctx)), true)
	case guest.Lost(err):
		// The watcher sees the VM's end, and then settles all with its reason.
		p.pod.Log.Debug("wait for exit: connection broke", "process", p.String(), "error", err)
	default:
		reason := "the agent lost the exit status: " + guest.Classify(err).Error()
		p.Settle(ExitStatus{Code: unknownCode, Reason: reason}, false)
	}
}

// exitTold is the exit that the guest tells, if it is one.
func exitTold(code int32) ExitStatus {
	if code < 0 || code > 255 {
		return ExitStatus{Code: unknownCode, Reason: fmt.Sprintf("the guest tells the exit status %d, which none is", code)}
	}
	return ExitStatus{Code: uint32(code)}
}

// toldByGuest says whether the exit status is the guest's, and not that of a VM which died.
func (p *Process) toldByGuest() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known
}

// drain waits for the end of the process's output, at most stream.DrainGrace.
func (p *Process) drain(ctx context.Context) {
	p.reported.set()
	p.mu.Lock()
	p.known = true
	s := p.streams
	p.mu.Unlock()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stream.DrainGrace)
	defer cancel()
	s.Drained(ctx.Done())
}

// mustEnd ends the VM if the guest does not report the exit of the process within StopTimeout of SIGKILL.
func (p *Process) mustEnd() {
	p.killed.once.Do(func() {
		close(p.killed.c)
		p.pod.Spawn(func(ctx context.Context) {
			if pulse.Await(ctx, p.reported.c, p.pod.StopTimeout) {
				p.pod.Condemn(fmt.Errorf("%s did not end within runtime.stop_timeout (%s) of SIGKILL", p, p.pod.StopTimeout))
			}
		})
	})
}
