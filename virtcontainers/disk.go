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

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
	"github.com/coco-shim/coco/virtcontainers/state"
)

const (
	// minDisk is the smallest size of an emptyDir's disk.
	minDisk = 16 << 20
	// maxDisk bounds a disk whose size is that of its host's file system: the guest's metadata of a disk in memory
	// grows with the size.
	maxDisk = 1 << 40
)

// diskVolume makes a disk for an emptyDir: a sparse file in the very directory that the volume is on
// the host, where kubelet counts what it takes, holds that against sizeLimit, and removes it with the
// pod if nobody else has.
func (p *Pod) diskVolume(ctx context.Context, v *podVolume) (_ *agent.Storage, err error) {
	dir, err := hostvolume.Open(v.origin, v.source)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	s, err := hostvolume.ShapeOf(dir)
	if err != nil {
		return nil, err
	}
	size := p.opts.Config.Runtime.EmptyDirSizeMiB * mib
	if size == 0 {
		size = min(max(s.Bytes, minDisk), maxDisk)
	}
	name := filepath.Join(v.source, state.DiskName)
	var u undo.Stack
	defer u.RunOnError(&err)
	if err := p.journal.Update(func(j *state.Pod) { j.Disks = append(slices.Clone(j.Disks), name) }); err != nil {
		return nil, err
	}
	u.Push("remove "+name, func(context.Context) error { return p.removeDisk(name) })
	f, err := createDisk(dir, size)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the VMM has its own descriptor
	addr, err := plugBlock(ctx, p.vm, hypervisor.Block{ID: "v-" + hash16(v.source), File: f})
	if err != nil {
		return nil, fmt.Errorf("attach the disk of volume %s to vm %s: %w", v.source, p.vm.ID(), err)
	}
	p.undo.Adopt(&u) // it goes with the VM
	opts := []string{fmt.Sprintf("mode=%o", s.Mode)}
	if s.Group != 0 {
		opts = append(opts, fmt.Sprintf("gid=%d", s.Group))
	}
	return &agent.Storage{
		Driver: addr.Driver, Source: addr.Source, Fstype: "ext4", Options: opts,
		DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS}, MountPoint: v.guest, Shared: true,
	}, nil
}

// createDisk makes the sparse file. One that is there is of a pod's earlier VM, whose key is gone.
func createDisk(dir *os.File, size uint64) (*os.File, error) {
	if err := state.RemoveDiskIn(dir); err != nil {
		return nil, err
	}
	f, err := hostfs.Beneath(dir, state.DiskName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, false)
	if err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if err := f.Truncate(int64(size)); err != nil { //nolint:gosec // bounded
		return nil, errors.Join(fmt.Errorf("make a disk of %d MiB: %w", size/mib, err), f.Close())
	}
	return f, nil
}

// removeDisk removes a disk and takes it out of the journal.
func (p *Pod) removeDisk(name string) error {
	if err := state.RemoveDisk(name); err != nil {
		return err
	}
	return p.journal.Update(func(j *state.Pod) {
		j.Disks = slices.DeleteFunc(slices.Clone(j.Disks), func(d string) bool { return d == name })
	})
}
