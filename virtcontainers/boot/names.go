// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/virtcontainers/share"
)

// AskNames lets the guest ask the engine's resolver if the container's resolv.conf has come to name it since the pod
// was made: Docker 28 writes it after the creation of the task, and before its start.
func (m *Machine) AskNames(ctx context.Context) error { return m.names(ctx) }

// askLate is what AskNames does.
func (c *creation) askLate(ctx context.Context) (err error) {
	if c.asksNames {
		return nil
	}
	if err := c.checkNames(ctx); err != nil || !c.asksNames {
		return err
	}
	if err := c.openNames(ctx); err != nil {
		c.asksNames = false // a second start tries again
		return err
	}
	return nil
}

// checkNames refuses a container whose names its guest would not ask the host for, before the VM boots.
func (c *creation) checkNames(context.Context) error {
	if c.opts.First == nil {
		return nil
	}
	asks, err := share.AsksEngine(c.opts.First.Spec)
	if err != nil || !asks {
		return err
	}
	if !slices.Contains(strings.Fields(c.vmspec.Boot.Cmdline), contract.ParamResolver) {
		return fmt.Errorf("the container's names are answered by its engine (%s in its resolv.conf), and a confidential "+
			"guest does not ask the host for names unless its measured kernel parameters say so: add %s to "+
			"hypervisor.kernel_params, or use the engine's default network: %w", contract.ResolverLine,
			contract.ParamResolver, errdefs.ErrFailedPrecondition)
	}
	c.asksNames = true
	return nil
}

// openNames lets the guest ask the engine's resolver.
func (c *creation) openNames(ctx context.Context) error {
	c.names = c.askLate
	if !c.asksNames {
		return nil
	}
	if c.opts.Host.Names == nil {
		return fmt.Errorf("this host asks no resolver of an engine: %w", errdefs.ErrNotImplemented)
	}
	names, err := c.opts.Host.Names(c.netns)
	if err != nil {
		return err
	}
	conn, err := c.Agent.DialResolver(ctx)
	if err != nil {
		return errors.Join(err, names.Close())
	}
	log, pod, ended := c.log, c.opts.ID, c.ended
	serve := func(ctx context.Context) {
		if err := errors.Join(names.Serve(ctx, conn), names.Close()); err != nil && !ended() {
			log.Warn("the container's names do not resolve any more", "pod", pod, "error", err)
		}
	}
	if !c.Life.Spawn(serve) {
		return errors.Join(errEnded, conn.Close(), names.Close())
	}
	return nil
}
