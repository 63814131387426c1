// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"fmt"

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
	var u undo.Stack
	defer u.RunOnError(&err)
	addr, err := p.disks.ForVolume(ctx, dir, v.source, size, &u)
	if err != nil {
		return nil, err
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
