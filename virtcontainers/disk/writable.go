// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/scratch"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// upperBlock is the disk of a container's writable layer, as the VM knows it.
func upperBlock(cid string, f *os.File) hypervisor.Block {
	return hypervisor.Block{ID: "w-" + ident.Hash16(cid), File: f}
}

// AtBoot makes the disk of the only container's writable layer, which is in the VM from boot: that is cheaper than
// plugging it in. It returns false where writable layers are in memory.
func AtBoot(r configs.Runtime, container string) (hypervisor.Block, bool, error) {
	if r.WritableLayer != configs.WritableDisk {
		return hypervisor.Block{}, false, nil
	}
	f, err := scratch.Unnamed(r.ScratchDir, r.UpperMiB())
	return upperBlock(container, f), err == nil, err
}

// Writable provides the storage of a container's writable layer. snapshot is the upper directory of its snapshot, ""
// where it has none.
func (s *Set) Writable(ctx context.Context, container, snapshot string, u *undo.Stack) (rootfs.Upper, error) {
	if s.runtime.WritableLayer != configs.WritableDisk {
		return rootfs.Upper{MiB: s.runtime.UpperMiB()}, nil
	}
	if loc, ok := s.vm.(hypervisor.BlockLocator); ok && s.alone == container {
		if addr, ok := loc.BlockAddress(upperBlock(container, nil).ID); ok {
			return rootfs.Upper{Disk: &addr}, nil
		}
	}
	f, err := s.makeUpper(snapshot, u)
	if err != nil {
		return rootfs.Upper{}, err
	}
	defer f.Close() // the VMM has its own descriptor
	b := upperBlock(container, f)
	addr, err := s.plug(ctx, b)
	if err != nil {
		return rootfs.Upper{}, fmt.Errorf("attach the writable layer's disk to vm %s: %w", s.vm.ID(), err)
	}
	u.Push("unplug the writable layer's disk", func(ctx context.Context) error { return s.unplug(ctx, b.ID) })
	return rootfs.Upper{Disk: &addr}, nil
}

// makeUpper makes the disk's file: in the snapshot that a container of Kubernetes has for what it
// writes, whose size the kubelet learns from containerd, and evicts by; else without a name.
func (s *Set) makeUpper(snapshot string, u *undo.Stack) (*os.File, error) {
	r := s.runtime
	if snapshot == "" || s.alone != "" {
		return scratch.Unnamed(r.ScratchDir, r.UpperMiB())
	}
	if err := s.record(filepath.Join(snapshot, state.DiskName), u); err != nil {
		return nil, err
	}
	return scratch.Named(snapshot, state.DiskName, r.UpperMiB())
}

// RemoveAll removes the disks of containers that nobody deleted, when the VM has ended.
func (s *Set) RemoveAll(context.Context) error {
	var errs []error
	for _, name := range s.journal.Disks() {
		errs = append(errs, s.remove(name))
	}
	return errors.Join(errs...)
}
