// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/process"
)

// partTime is how long the agent may take to end the containers that still run. The guest's memory and disks are
// dropped afterwards, so a longer wait would save nothing.
const partTime = time.Second

// Shutdown ends the VM and releases the pod's resources in reverse order of their creation. It is idempotent: after an
// error, the next call continues with the resources that are left.
func (p *Pod) Shutdown(ctx context.Context) error {
	settle, err := p.claimEnd(ctx)
	if err != nil {
		return err
	}
	defer settle()
	if err := p.endVM(ctx); err != nil {
		return err
	}
	p.log.Debug("VM has ended, the rest is given back", "pod", p.opts.ID)
	errs := []error{p.closeAllStreams()}
	p.m.Life.End(errShutdown)
	errs = append(errs, p.m.Undo.Run(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("shut pod %s down: %w", p.opts.ID, err)
	}
	p.tidyLayers(ctx)
	return nil
}

// tidyTime bounds how long the end of a pod may trim the node's layer cache.
const tidyTime = 2 * time.Second

// tidyLayers lets the node's layers follow its snapshots, of which some may be gone since the last build.
func (p *Pod) tidyLayers(ctx context.Context) {
	t, ok := p.opts.Host.Layers.(interface{ Tidy(context.Context) error })
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tidyTime)
	defer cancel()
	if err := t.Tidy(ctx); err != nil {
		p.log.Debug("tidy the layer cache", "error", err)
	}
}

// EndVM ends the VM and keeps what the pod holds on the host, until Shutdown: its processes have ended, and
// their exits can still be asked for. It is idempotent.
func (p *Pod) EndVM(ctx context.Context) error {
	settle, err := p.claimEnd(ctx)
	if err != nil {
		return err
	}
	defer settle()
	return p.endVM(ctx)
}

// claimEnd waits for the turn to end the pod, or parts of it; no container is made any more.
func (p *Pod) claimEnd(ctx context.Context) (settle func(), err error) {
	if err := p.stopping.Lock(ctx); err != nil {
		return nil, fmt.Errorf("shut pod %s down: %w", p.opts.ID, err)
	}
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	return p.stopping.Unlock, nil
}

// endVM returns when the VM has ended and every exit is settled.
func (p *Pod) endVM(ctx context.Context) error {
	p.log.Debug("pod ends", "pod", p.opts.ID)
	p.part(ctx)
	if err := p.stopVM(ctx); err != nil {
		p.log.Warn("stop the VM; killing it", "pod", p.opts.ID, "error", err)
		if err := p.m.Place.Abort(ctx); err != nil {
			return fmt.Errorf("shut pod %s down: %w", p.opts.ID, err)
		}
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut pod %s down: the VM does not end: %w", p.opts.ID, context.Cause(ctx))
	}
}

func (p *Pod) stopVM(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Config.Runtime.StopTimeout)
	defer cancel()
	return p.m.VM.Stop(ctx)
}

// part tells the agent to end what still runs. A VM without running processes is just stopped.
func (p *Pod) part(ctx context.Context) {
	if !p.anyRunning() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	if _, err := p.m.Agent.DestroySandbox(ctx, &agent.DestroySandboxRequest{}); err != nil && !guest.Lost(err) {
		p.log.Debug("destroy sandbox", "pod", p.opts.ID, "error", err)
	}
}

func (p *Pod) anyRunning() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		if st, _ := c.init.State(); st == process.Running || st == process.Paused {
			return true
		}
	}
	return false
}

// closeAllStreams ends the streams of processes that nobody deleted.
func (p *Pod) closeAllStreams() error {
	var errs []error
	for _, pr := range p.processes() {
		errs = append(errs, pr.CloseStreams())
	}
	return errors.Join(errs...)
}
