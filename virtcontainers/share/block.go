// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// directVolume is a file system on a disk that the CSI driver has left to the VM.
func (s *Set) directVolume(ctx context.Context, v *shared) (*agent.Storage, error) {
	d, err := hostvolume.ReadDirect(hostvolume.DirectDir, v.source)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, fmt.Errorf("direct volume %s: its record is gone: %w", v.source, os.ErrNotExist)
	}
	f, device, err := d.Open()
	if err != nil {
		return nil, err
	}
	addr, err := s.o.Disks.PlugVolume(ctx, v.source, hypervisor.Block{File: f, ReadOnly: d.ReadOnly(), Device: device})
	if err != nil {
		return nil, err
	}
	// It is not the sandbox's: the guest unmounts it with its last container, so that everything is on
	// the disk before the VM ends.
	st := &agent.Storage{
		Driver: addr.Driver, Source: addr.Source, Fstype: d.FSType, Options: slices.Clone(d.Options), MountPoint: v.guest,
	}
	if id, ok, _ := d.Group(); ok { // checked when it was read
		st.FsGroup = &agent.FSGroup{GroupId: id}
	}
	return st, nil
}

// rawVolume is a disk of the host as a device node.
func (s *Set) rawVolume(ctx context.Context, v *shared) (*agent.Device, error) {
	d, err := volume.ParseDevice(v.source)
	if err != nil {
		return nil, err
	}
	f, err := hostvolume.OpenDevice(d.Major, d.Minor, d.ReadOnly)
	if err != nil {
		return nil, err
	}
	addr, err := s.o.Disks.PlugVolume(ctx, v.source, hypervisor.Block{File: f, ReadOnly: d.ReadOnly, Device: true})
	if err != nil {
		return nil, err
	}
	return &agent.Device{Type: addr.Driver, VmPath: addr.Source}, nil
}

// Devices brings a container's raw block devices into the VM.
func (s *Set) Devices(ctx context.Context, m *Mounts) ([]*agent.Device, error) {
	var out []*agent.Device
	for path, v := range m.raw {
		if err := s.makeVolume(ctx, v, path); err != nil {
			return nil, err
		}
		out = append(out, &agent.Device{Type: v.device.Type, VmPath: v.device.VmPath, ContainerPath: path})
	}
	slices.SortFunc(out, func(a, b *agent.Device) int { return strings.Compare(a.ContainerPath, b.ContainerPath) })
	return out, nil
}

// Disks are the paths of raw block devices, for the conversion.
func (m *Mounts) Disks() map[string]bool {
	out := map[string]bool{}
	for path := range m.raw {
		out[path] = true
	}
	return out
}
