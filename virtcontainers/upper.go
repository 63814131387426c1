// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/rlimit"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/scratch"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// upperBlock is the disk of a container's writable layer, as the VM knows it.
func upperBlock(cid string, f *os.File) hypervisor.Block {
	return hypervisor.Block{ID: "w-" + hash16(cid), File: f}
}

// onDisk says whether writable layers lie on disks.
func (p *Pod) onDisk() bool { return p.opts.Config.Runtime.WritableLayer == configs.WritableDisk }

// addUpper puts the disk of the only container's writable layer into the VM from boot, which is cheaper
// than plugging it in.
func (c *creation) addUpper() error {
	if c.opts.First == nil || !c.onDisk() {
		return nil
	}
	r := c.opts.Config.Runtime
	f, err := scratch.Unnamed(r.ScratchDir, r.UpperMiB())
	if err != nil {
		return err
	}
	c.u.Push("close the writable layer's disk", func(context.Context) error { return closeOnce(f) })
	c.opened = append(c.opened, f) // closed once the VMM has it
	c.vmspec.Blocks = append(c.vmspec.Blocks, upperBlock(c.opts.First.ID, f))
	return nil
}

// upper provides the storage of a container's writable layer.
func (p *Pod) upper(ctx context.Context, req ContainerRequest, u *undo.Stack) (rootfs.Upper, error) {
	if !p.onDisk() {
		return rootfs.Upper{MiB: p.opts.Config.Runtime.UpperMiB()}, nil
	}
	if loc, ok := p.vm.(hypervisor.BlockLocator); ok && p.isFirst(req.ID) {
		if addr, ok := loc.BlockAddress(upperBlock(req.ID, nil).ID); ok {
			return rootfs.Upper{Disk: &addr}, nil
		}
	}
	f, err := p.makeUpper(req, u)
	if err != nil {
		return rootfs.Upper{}, err
	}
	defer f.Close() // the VMM has its own descriptor
	b := upperBlock(req.ID, f)
	addr, err := plugBlock(ctx, p.vm, b)
	if err != nil {
		return rootfs.Upper{}, fmt.Errorf("attach the writable layer's disk to vm %s: %w", p.vm.ID(), err)
	}
	u.Push("unplug the writable layer's disk", func(ctx context.Context) error { return unplugBlock(ctx, p.vm, b.ID) })
	return rootfs.Upper{Disk: &addr}, nil
}

// makeUpper makes the disk's file: in the snapshot that a container of Kubernetes has for what it
// writes, whose size the kubelet learns from containerd, and evicts by; else without a name.
func (p *Pod) makeUpper(req ContainerRequest, u *undo.Stack) (*os.File, error) {
	r := p.opts.Config.Runtime
	dir, err := snapshotUpper(req)
	if err != nil {
		return nil, err
	}
	if dir == "" || p.opts.First != nil {
		return scratch.Unnamed(r.ScratchDir, r.UpperMiB())
	}
	name := filepath.Join(dir, state.DiskName)
	if err := p.journal.Update(func(j *state.Pod) { j.Disks = append(slices.Clone(j.Disks), name) }); err != nil {
		return nil, err
	}
	u.Push("remove "+name, func(context.Context) error { return p.removeDisk(name) })
	return scratch.Named(dir, state.DiskName, r.UpperMiB())
}

// removeDisks removes the disks of containers that nobody deleted, when the VM has ended.
func (p *Pod) removeDisks(context.Context) error {
	var errs []error
	for _, name := range p.journal.Disks() {
		errs = append(errs, p.removeDisk(name))
	}
	return errors.Join(errs...)
}

// snapshotUpper returns the upper directory of the snapshot that containerd made for a container, or "" where there is
// none.
func snapshotUpper(req ContainerRequest) (string, error) {
	if len(req.Rootfs) == 0 {
		return "", nil
	}
	plan, err := rootfs.Resolve(rootfs.Request{Mounts: storageMounts(req.Rootfs)})
	return plan.Upper, err
}

func storageMounts(in []Mount) (out []rootfs.Mount) {
	for _, m := range in {
		out = append(out, rootfs.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

// defaultRlimits are the limits of processes whose specification names none: the configuration's, then those that
// containerd sets for its children.
func defaultRlimits(configured []string) ([]specs.POSIXRlimit, error) {
	var stated []specs.POSIXRlimit
	for _, s := range configured {
		l, err := configs.ParseRlimit(s)
		if err != nil {
			return nil, fmt.Errorf("runtime.rlimits: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		stated = append(stated, specs.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	host, err := rlimit.Host(os.Getenv(rlimit.Env))
	return request.MergeRlimits(stated, host), err
}
