// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// TPMServer makes a process the virtual TPM of one VM. Package virtcontainers/host has the one that uses swtpm.
type TPMServer interface {
	// Begin forks a waiting process into the network namespace that the path netns names, with a jail and a user.
	Begin(ctx context.Context, netns string, user uint32) (hypervisor.Process, error)
	// Serve turns proc into a TPM that is new and empty, and returns the VMM's end of their connection, which is the
	// caller's, as the process is.
	Serve(ctx context.Context, proc hypervisor.Process) (*os.File, error)
}

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
	proc, err := c.opts.Host.TPM.Begin(ctx, c.netns, c.user)
	if err != nil {
		return err
	}
	c.u.Push("end the virtual TPM", func(ctx context.Context) error { return end(ctx, proc) })
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
	socket, err := c.opts.Host.TPM.Serve(ctx, proc)
	if err != nil {
		return err
	}
	c.u.Push("close the virtual TPM's connection", func(context.Context) error { return closeOnce(socket) })
	c.vmspec.Boot.TPM = &hypervisor.TPM{Control: socket}
	return nil
}
