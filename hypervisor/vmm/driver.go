// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vmm

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
)

// Kind is a kind of VMM that runs as a process of this host.
type Kind interface {
	// Name is the kind's name in configuration and errors, for example "qemu".
	Name() string
	// Launch executes the VMM in proc and returns when it runs and the guest was released. On error it leaves nothing
	// behind but proc, which the caller ends. dir is a private directory for sockets.
	Launch(ctx context.Context, spec hypervisor.VMSpec, proc hypervisor.Process, dir string) (hypervisor.VM, error)
}

// Fork starts the process that becomes a VMM, in its namespaces and with its privileges.
type Fork func(ctx context.Context, p hypervisor.Place) (hypervisor.Process, error)

// NewDriver makes the driver of a kind of VMM.
func NewDriver(k Kind, fork Fork) hypervisor.Driver { return driver{k, fork} }

type driver struct {
	kind Kind
	fork Fork
}

// Name is the kind's.
func (d driver) Name() string { return d.kind.Name() }

// Begin forks the process.
func (d driver) Begin(ctx context.Context, p hypervisor.Place) (hypervisor.Pending, error) {
	proc, err := d.fork(ctx, p)
	if err != nil {
		return nil, err
	}
	return &pending{d.kind, proc, p}, nil
}

// pending is a VM whose process waits for its description.
type pending struct {
	kind  Kind
	proc  hypervisor.Process
	place hypervisor.Place
}

// PID is the process's, before and after Launch.
func (p *pending) PID() int { return p.proc.PID() }

// Done is closed when the process has ended.
func (p *pending) Done() <-chan struct{} { return p.proc.Done() }

// Err says how the process ended.
func (p *pending) Err() error {
	if !ended(p.proc.Done()) {
		return nil
	}
	return &hypervisor.DeadError{
		VM: p.place.ID, Phase: hypervisor.PhaseVMM, Reason: "its process ended: " + p.proc.ExitStatus(),
		Stderr: p.proc.Stderr(),
	}
}

// Launch makes the process the VMM. On error the process has ended.
func (p *pending) Launch(ctx context.Context, spec hypervisor.VMSpec) (hypervisor.VM, error) {
	if spec.ID != p.place.ID {
		return nil, errors.Join(fmt.Errorf("launch VM %s in the place of VM %s: %w", spec.ID, p.place.ID,
			errdefs.ErrInvalidArgument), p.Abort(context.WithoutCancel(ctx)))
	}
	vm, err := p.kind.Launch(ctx, spec, p.proc, p.place.Dir)
	if err != nil {
		_ = p.proc.Kill() // it may be dead already
		<-p.proc.Done()
		return nil, err
	}
	return vm, nil
}

// Abort kills the process and waits until it is gone.
func (p *pending) Abort(ctx context.Context) error {
	if err := p.proc.Kill(); err != nil {
		return err
	}
	select {
	case <-p.proc.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d did not end: %w", p.proc.PID(), context.Cause(ctx))
	}
}

// ended reports whether a channel is closed; a nil one never is.
func ended(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
