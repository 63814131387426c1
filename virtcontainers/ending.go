// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"fmt"
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/procinfo"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/pulse"
)

// A pod ends even if its guest hangs or lies. Each wait for the guest is bounded by a configuration key; then the VM is
// ended, which settles every exit.

// condemn makes the watcher end the VM. The first reason counts.
func (p *Pod) condemn(why error) {
	select {
	case p.doom <- why:
		p.m.Agent.Doom(why.Error())
	default:
	}
}

// endCondemned ends the VM at once, and returns why.
func (p *Pod) endCondemned(ctx context.Context, why error) error {
	if !p.endWithin(ctx, 0, "the VM is ended: "+why.Error()) {
		return nil // it ended by itself
	}
	return fmt.Errorf("vm %s was ended: %w", p.m.VM.ID(), why)
}

// endWithoutAgent ends a VM whose agent closed the connection or lost it by violating the protocol.
func (p *Pod) endWithoutAgent(ctx context.Context) error {
	if lie := p.m.Agent.Broken(); lie != nil {
		return p.endCondemned(ctx, lie)
	}
	p.endWithin(ctx, guest.LostVM, "the agent's connection broke while the VM runs on; stopping it")
	return nil
}

// watchPulse ends the VM when the agent does not answer any more.
func (p *Pod) watchPulse(ctx context.Context) {
	cfg := p.opts.Config.Runtime
	if cfg.HealthMisses == 0 {
		return
	}
	err := pulse.Beat{
		Interval: cfg.HealthInterval, Misses: cfg.HealthMisses, Heard: p.m.Agent.Heard, Paused: p.isPaused,
		Gone: p.m.VM.Done(),
		Ping: func(ctx context.Context) {
			if err := p.m.Agent.Ping(ctx); err != nil {
				p.log.Debug("health check", "vm", p.m.VM.ID(), "error", err) // an error is a sign of life too
			}
		},
	}.Watch(ctx)
	if err != nil {
		p.condemn(fmt.Errorf("%w (runtime.health_misses, runtime.health_interval)", err))
	}
}

// isPaused says whether the guest cannot answer because somebody has stopped its VM or the VMM.
func (p *Pod) isPaused(ctx context.Context) bool {
	if stopped, err := procinfo.Stopped(p.PID()); err == nil && stopped {
		return true
	}
	vm, ok := p.m.VM.(hypervisor.Pauser)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	paused, err := vm.Paused(ctx)
	return err == nil && paused
}

// filesLost is how long a VM may outlive its virtiofsd. virtiofsd also ends when the VM does; the VM's own exit then
// gives the reason.
const filesLost = time.Second

// endWithoutFiles ends a VM whose virtiofsd has ended. Without it, guest processes that use a live file would block for
// ever.
func (p *Pod) endWithoutFiles(ctx context.Context) error {
	if !p.endWithin(ctx, filesLost, "the server of the host's files ended; stopping the VM") {
		return nil
	}
	return fmt.Errorf("vm %s was ended because virtiofsd, which serves the live files of the host, ended: %s",
		p.m.VM.ID(), p.m.Files.Death())
}
