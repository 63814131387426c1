// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// serveTPM starts the VM's TPM, in the pod's cgroup like the VMM.
func (c *creation) serveTPM(ctx context.Context) error {
	if c.vmspec.Boot.TPM == nil {
		return nil
	}
	if c.opts.Host.TPM == nil {
		return fmt.Errorf("this host has no server of virtual TPMs: %w", errdefs.ErrNotImplemented)
	}
	c.log.Info("the VM has a virtual TPM that this host runs: its quotes prove what was booted to whoever trusts the "+
		"host, and nothing hides the guest's memory from the host", "pod", c.opts.ID)
	proc, err := c.beginTPM(ctx)
	if err != nil {
		return err
	}
	c.tpm = proc
	c.u.Push("end the virtual TPM", func(ctx context.Context) error { return hypervisor.End(ctx, proc) })
	id, err := state.Identify(proc.PID()) // as with the VMM, nothing is lost before the next line
	if err != nil {
		return err
	}
	if err := c.Journal.Update(func(p *state.Pod) { p.Helper = &id }); err != nil {
		return err
	}
	if err := cgroups.Apply(nil, c.leaves, proc.PID(), nil); err != nil {
		return err
	}
	if c.opts.Warm != nil {
		return nil // it serves
	}
	socket, err := c.opts.Host.TPM.Serve(ctx, proc)
	if err != nil {
		return err
	}
	c.u.Push("close the virtual TPM's connection", func(context.Context) error { return closeOnce(socket) })
	c.vmspec.Boot.TPM = &hypervisor.TPM{Control: socket}
	return nil
}

// beginTPM forks the process, or takes the one that serves the VM already.
func (c *creation) beginTPM(ctx context.Context) (hypervisor.Process, error) {
	if w := c.opts.Warm; w != nil {
		return w.c.tpm, nil
	}
	return c.opts.Host.TPM.Begin(ctx, c.netns, c.user)
}
