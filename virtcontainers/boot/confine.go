// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/state"
	"github.com/coco-shim/coco/virtcontainers/users"
)

// vmmThreads is how many threads a VMM may have besides those of its processors: workers for its disks, 64 of
// them, and some for itself.
const vmmThreads = 128

// filesThreads is how many the server of live files has at most, which is in the VMM's cgroup.
const filesThreads = 128

// takeUser finds a user id for the VMM that no other pod of this host has.
func (c *creation) takeUser(context.Context) error {
	if c.opts.Warm != nil {
		return c.inheritUser()
	}
	r, h := c.opts.Config.Runtime, c.opts.Config.Hypervisor
	c.u.Push("give the user id back", func(context.Context) error {
		if c.user == 0 {
			return nil
		}
		return users.Free(r.StateDir, c.user, c.opts.Bundle)
	})
	ids := users.Range{First: uint32(h.FirstUser), Count: uint32(h.Users)} //nolint:gosec // the schema bounds both
	_, err := users.Take(r.StateDir, ids, c.opts.Bundle, func(id uint32) error {
		c.user = id
		return c.Journal.Update(func(p *state.Pod) { p.User = id })
	})
	return err
}

func (c *creation) launch(ctx context.Context) error {
	place, err := c.begin(ctx)
	if err != nil {
		return err
	}
	c.Place = place
	c.u.Push("end the VMM's process", place.Abort)
	pid := place.PID()
	if pid == 0 {
		return fmt.Errorf("driver %s runs the VM on another machine, where pods have no cgroup and no network yet: %w",
			c.opts.Host.Driver.Name(), errdefs.ErrNotImplemented)
	}
	// Nothing is lost when this shim dies before the next line: the launcher ends with it.
	id, err := state.Identify(pid)
	if err != nil {
		return err
	}
	if err := c.Journal.Update(func(p *state.Pod) { p.VMM = &id }); err != nil {
		return err
	}
	if !c.ownNetNS || c.opts.Warm != nil {
		return nil
	}
	if err := c.opts.Host.Network.Delete(c.netns); err != nil {
		return err
	}
	c.netns = fmt.Sprintf("/proc/%d/ns/net", pid)
	return c.Journal.Update(func(p *state.Pod) { p.OwnNetNS = "" })
}

// begin makes the place where the VM will run, or takes the one where it runs already.
func (c *creation) begin(ctx context.Context) (hypervisor.Pending, error) {
	if w := c.opts.Warm; w != nil {
		return w.c.Place, nil
	}
	return c.opts.Host.Driver.Begin(ctx, hypervisor.Place{
		ID: c.opts.ID, NetNS: c.netns, User: c.user, Dir: c.vmmDir(),
		Processes: c.threads(),
	})
}

// vmmDir is the directory that the VMM may write to: not the pod's own, where the journal is.
func (c *creation) vmmDir() string { return filepath.Join(c.StateDir, "vmm") }

// joinCgroups puts the VMM, and the shim where it is this pod's alone, into leaves of the pod's group.
func (c *creation) joinCgroups(context.Context) error {
	hs, err := cgroups.Hierarchies()
	if err != nil {
		return err
	}
	want := c.opts.Spec.Linux.CgroupsPath
	place, err := cgroups.WithRoom(hs, want, c.Shape.MemoryMiB<<20)
	if err != nil {
		return err
	}
	if place.Short != "" {
		c.log.Warn("the pod's cgroup allows "+place.Short+
			": the VMM runs beside it; declare the overhead in the RuntimeClass",
			"pod", want, "vmm", place.Path, "vmMiB", c.Shape.MemoryMiB)
	}
	dirs, leaves, err := cgroups.Plan(hs, place.Path, cgroups.VMM)
	if err != nil {
		return err
	}
	c.leaves = leaves
	var made []string
	note := func(dir string) error {
		made = append(made, dir)
		return c.Journal.Update(func(p *state.Pod) { p.Cgroups = slices.Clone(made) })
	}
	c.u.Push("remove cgroups", func(ctx context.Context) error {
		if err := c.Place.Abort(ctx); err != nil { // a group with a process in it stays
			return err
		}
		return cgroups.Remove(ctx, made)
	})
	if err := cgroups.Apply(dirs, leaves, c.Place.PID(), note); err != nil {
		return err
	}
	if err := errors.Join(place.SetQuota(hs), cgroups.LimitProcesses(leaves, c.threads()+filesThreads)); err != nil {
		return err
	}
	if c.opts.Host.Devices != nil {
		err := cgroups.LimitDevices(leaves, *c.opts.Host.Devices)
		if errors.Is(err, errors.ErrUnsupported) {
			c.log.Warn("no cgroup keeps the VMM from devices", "pod", want, "error", err)
		} else if err != nil {
			return err
		}
	}
	return c.joinOwn(hs, place.Path, note)
}

// joinOwn puts this process into a leaf beside the VMM's. The process leaves it before the group is removed: engines
// kill the processes in the group of a pod that they consider gone.
func (c *creation) joinOwn(hs []cgroups.Hierarchy, place string, note func(string) error) error {
	if !c.opts.JoinCgroup {
		return nil
	}
	dirs, leaves, err := cgroups.Plan(hs, place, cgroups.Shim)
	if err != nil || len(leaves) == 0 {
		return err
	}
	was, err := cgroups.Self(hs)
	if err != nil {
		return err
	}
	c.u.Push("leave the pod's cgroup", func(context.Context) error { return was.Return(hs, os.Getpid()) })
	return cgroups.Apply(dirs, leaves, os.Getpid(), note)
}

// threads is how many threads the VMM may have.
func (c *creation) threads() uint64 {
	return vmmThreads + 2*uint64(c.Shape.VCPUs) //nolint:gosec // not negative
}
