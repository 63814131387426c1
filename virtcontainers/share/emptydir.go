// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"fmt"
	"os"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
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
func (s *Set) diskVolume(ctx context.Context, v *shared) (_ *agent.Storage, err error) {
	dir, err := hostvolume.Open(v.origin, v.source)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	shape, err := hostvolume.ShapeOf(dir)
	if err != nil {
		return nil, err
	}
	size := s.o.Config.Runtime.EmptyDirSizeMiB << 20
	if size == 0 {
		size = min(max(shape.Bytes, minDisk), maxDisk)
	}
	var u undo.Stack
	defer u.RunOnError(&err)
	addr, err := s.o.Disks.ForVolume(ctx, dir, v.source, size, &u)
	if err != nil {
		return nil, err
	}
	s.o.Undo.Adopt(&u) // it goes with the VM
	opts := []string{fmt.Sprintf("mode=%o", shape.Mode)}
	if shape.Group != 0 {
		opts = append(opts, fmt.Sprintf("gid=%d", shape.Group))
	}
	return &agent.Storage{
		Driver: addr.Driver, Source: addr.Source, Fstype: "ext4", Options: opts,
		DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS}, MountPoint: v.guest, Shared: true,
	}, nil
}

// memoryVolume is a tmpfs as kubelet has made one on the host: its size limit, mode and group. One
// that could hold more than the guest's memory is bounded by half of that, as Linux does by default.
func memoryVolume(v *shared, source *os.File, memoryMiB uint64) (*agent.Storage, error) {
	s, err := hostvolume.ShapeOf(source)
	if err != nil {
		return nil, err
	}
	size := "size=50%"
	if s.Bytes > 0 && s.Bytes < memoryMiB<<20 {
		size = fmt.Sprintf("size=%d", s.Bytes)
	}
	return ephemeral(v.guest, size, s), nil
}

// ephemeral is guest memory of a volume's shape, for the life of the sandbox.
func ephemeral(at, size string, s hostvolume.Shape) *agent.Storage {
	opts := []string{size, fmt.Sprintf("mode=%o", s.Mode)}
	if s.Group != 0 {
		opts = append(opts, fmt.Sprintf("gid=%d", s.Group))
	}
	return &agent.Storage{
		Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", Options: opts, MountPoint: at, Shared: true,
	}
}
