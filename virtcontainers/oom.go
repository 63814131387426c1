// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/process"
)

const (
	// oomEvery is the shortest interval between two OOM events of one container.
	oomEvery = time.Second
	// oomLate is how long after a container's exit an OOM event of it is still published. Exits and OOM events arrive
	// by different calls, in any order.
	oomLate = 5 * time.Second
)

// watchOOM publishes the guest's OOM events, one per GetOOMEvent call. After an implausible event it waits for oomEvery
// before the next call, which bounds the load that a hostile guest can cause. A guest whose policy closes statistics
// refuses the first call: that is no fault.
func (p *Pod) watchOOM(ctx context.Context) {
	for ctx.Err() == nil {
		ev, err := p.m.Agent.GetOOMEvent(ctx, &agent.GetOOMEventRequest{})
		if err != nil {
			err = guest.Classify(err)
			switch {
			case ctx.Err() != nil || guest.Lost(err):
			case errdefs.IsPermissionDenied(err):
				p.log.Info("the policy of the guest does not open stats: no container is reported as killed for lack of memory",
					"vm", p.m.VM.ID())
			default:
				p.log.Warn("no OOM events from the agent", "vm", p.m.VM.ID(), "error", err)
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

// believesOOM reports whether an OOM event is plausible: its container belongs to this pod, runs or has ended at most
// oomLate ago, and had no event within oomEvery.
func (p *Pod) believesOOM(id string, now time.Time) bool {
	c, err := p.Container(id)
	if err != nil {
		return false
	}
	state, exit := c.init.State()
	if !c.init.Current().HasRun() || state == process.Stopped && now.Sub(exit.At) > oomLate {
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
