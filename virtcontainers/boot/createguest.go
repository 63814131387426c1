// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/share"
)

// awaitAgent waits for the agent, at most the boot's time. It ends early when the layers of the pod's
// only container turn out to be impossible.
func (c *creation) awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.vmspec.BootTimeout,
		fmt.Errorf("no answer within hypervisor.boot_timeout of %s: %w", c.vmspec.BootTimeout, context.DeadlineExceeded))
	defer cancel()
	ctx, give := context.WithCancelCause(ctx)
	defer give(nil)
	if o := c.first; o != nil {
		stop := make(chan struct{})
		defer close(stop)
		c.Life.Spawn(func(context.Context) {
			select {
			case <-o.Done():
				if err := o.Failed(); err != nil {
					give(fmt.Errorf("root file system: %w", err))
				}
			case <-stop:
			}
		})
	}
	l, err := guest.Connect(ctx, c.VM, c.opts.Config.Runtime.CreateTimeout)
	if err != nil {
		if o := c.first; o != nil && o.Failed() != nil {
			return fmt.Errorf("root file system: %w", o.Failed())
		}
		return err
	}
	c.Agent = l
	c.Volumes = share.New(share.Options{
		Pod: c.opts.ID, Log: c.log, Config: c.opts.Config, Alone: c.opts.alone(), MemoryMiB: c.Shape.MemoryMiB,
		Guest: l, Disks: c.Disks, Layers: c.opts.Host.Layers, Files: c.Files.shared(), Undo: &c.Undo,
		Spawn: c.Life.Spawn, Ended: c.ended,
	})
	c.u.Push("close the agent's connection", func(context.Context) error { return l.Close() })
	return c.renew(ctx)
}

// entropyBytes is what a guest that was cloned gets. Its generator's state has 32.
const entropyBytes = 64

// renew gives a guest that began as a copy of another one entropy of its own, before any process runs in it.
func (c *creation) renew(ctx context.Context) error {
	if v, ok := c.VM.(hypervisor.Cloned); !ok || !v.Cloned() {
		return nil
	}
	fresh := make([]byte, entropyBytes)
	if _, err := rand.Read(fresh); err != nil {
		return err
	}
	return c.Agent.Call(ctx, "renew the random numbers of a guest from a template", func(ctx context.Context) error {
		_, err := c.Agent.ReseedRandomDev(ctx, &agent.ReseedRandomDevRequest{Data: fresh})
		return err
	})
}

func (c *creation) createSandbox(ctx context.Context) error {
	req := c.sandboxRequest()
	g, ctx := errgroup.WithContext(ctx) // the three do not depend on each other
	g.Go(func() error {
		return c.Agent.Call(ctx, "create sandbox", func(ctx context.Context) error {
			_, err := c.Agent.CreateSandbox(ctx, req)
			return err
		})
	})
	g.Go(func() error { return c.Agent.AskDetails(ctx) })
	g.Go(func() error { return c.setClock(ctx) })
	return g.Wait()
}

// setClock makes the guest's clock exact; a policy may forbid it, and the clock that the VMM gave
// has to do then.
func (c *creation) setClock(ctx context.Context) error {
	err := c.Agent.Call(ctx, "set the clock", func(ctx context.Context) error {
		now := time.Now()
		_, err := c.Agent.SetGuestDateTime(ctx, &agent.SetGuestDateTimeRequest{
			Sec:  now.Unix(),
			Usec: int64(now.Nanosecond() / 1000),
		})
		return err
	})
	if errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err) {
		c.log.Info("the agent does not let the host set the clock", "pod", c.opts.ID)
		return nil
	}
	return err
}
