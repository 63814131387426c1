// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"time"

	"github.com/coco-shim/coco/api/agent"
)

const (
	// oomEvery is how often one container's shortage of memory is told.
	oomEvery = time.Second
	// oomLate is how long after a container's exit the shortage that caused it may still be told: the two come on
	// different ways.
	oomLate = 5 * time.Second
)

// watchOOM passes on what the guest killed for lack of memory, one event per call. The guest is not asked again at
// once when it told what cannot be.
func (p *Pod) watchOOM(ctx context.Context) {
	for ctx.Err() == nil {
		ev, err := p.agent.GetOOMEvent(ctx, &agent.GetOOMEventRequest{})
		if err != nil {
			if ctx.Err() == nil && !lost(err) {
				p.log.Warn("no OOM events from the agent", "vm", p.vm.ID(), "error", classify(err))
			}
			return
		}
		if p.believesOOM(ev.GetContainerId(), time.Now()) {
			if p.opts.OnOOM != nil {
				p.opts.OnOOM(ev.GetContainerId())
			}
			continue
		}
		t := time.NewTimer(oomEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// believesOOM says whether an event is of a container of this pod that runs, and not one of many.
func (p *Pod) believesOOM(id string, now time.Time) bool {
	c, err := p.container(id)
	if err != nil {
		return false
	}
	c.init.mu.Lock()
	state, exit := c.init.state, c.init.exit.At
	c.init.mu.Unlock()
	if state == creating || state == Created || state.public() == Stopped && now.Sub(exit) > oomLate {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.oom.IsZero() && now.Sub(c.oom) < oomEvery {
		return false
	}
	c.oom = now
	return true
}
