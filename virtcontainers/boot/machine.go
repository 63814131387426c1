// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package boot makes the VM of a pod.
//
// Start acquires everything in order: the boot files, the journal, the network namespace, a user, the process that
// becomes the VMM, cgroups, the network, the VM, the agent's connection and the sandbox. It writes each thing to the
// journal in the bundle before it has it, and pushes its undo. The result is a Machine, whose Undo gives everything
// back in reverse order.
//
// The package acts on the host through the narrow interfaces in Host, which tests replace by fakes that behave.
// Containers are for package virtcontainers.
package boot

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/state"
)

var errEnded = fmt.Errorf("the pod is shut down: %w", errdefs.ErrUnavailable)

// alone is the id of the container of a pod of one, else empty.
func (o Options) alone() string {
	if o.First == nil {
		return ""
	}
	return o.First.ID
}

// Layers returns the search for the layers of a container. That of a pod of one was begun before the boot. It returns
// nil when the pod has ended.
func (m *Machine) Layers(first bool, from layers.Opener, req layers.Request) *layers.Search {
	if first {
		if s := m.takeFirst(); s != nil {
			return s
		}
	}
	return m.search(req, from)
}

// beginLayers starts the search for the first container's layers, which goes on beside everything
// else.
func (c *creation) beginLayers(context.Context) error {
	if c.opts.First == nil || c.Pulls.Of(c.opts.First.Spec) != "" {
		return nil
	}
	c.first = c.search(c.opts.First.Layers, c.opts.Host.Layers)
	if c.first == nil {
		return errEnded
	}
	c.u.Push("give the layers up", func(context.Context) error {
		if o := c.takeFirst(); o != nil {
			return o.Close()
		}
		return nil
	})
	return nil
}

func (m *Machine) takeFirst() *layers.Search {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.first
	m.first = nil
	return s
}

func (m *Machine) search(req layers.Request, from layers.Opener) *layers.Search {
	return layers.Begin(m.Life.Context(), m.Life.Spawn, from, req)
}

// ended says whether the VM has, or is about to.
func (c *creation) ended() bool {
	select {
	case <-c.VM.Done():
		return true
	default:
		return c.opts.Ending()
	}
}

// hookState is the state that the hooks of the pod's specification read.
func (c *creation) hookState(s specs.ContainerState) specs.State {
	return hooks.State(c.opts.Spec, c.opts.ID, c.opts.Bundle, s, c.Place.PID())
}

// runPoststop runs the poststop hooks of the pod's specification. That one of them fails is logged:
// the others have to run, and trying again would run them twice.
func (c *creation) runPoststop(ctx context.Context) error {
	h := c.opts.Spec.Hooks
	if h == nil || len(h.Poststop) == 0 {
		return nil
	}
	if err := hooks.RunAll(ctx, "poststop", h.Poststop, c.hookState(specs.StateStopped)); err != nil {
		c.log.Error("poststop hooks", "pod", c.opts.ID, "error", err)
	}
	return c.Journal.Update(func(p *state.Pod) { p.Hooks = nil })
}
