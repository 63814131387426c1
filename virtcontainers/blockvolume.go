// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

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
func (p *Pod) directVolume(ctx context.Context, v *podVolume) (*agent.Storage, error) {
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
	addr, err := p.disks.PlugVolume(ctx, v.source, hypervisor.Block{File: f, ReadOnly: d.ReadOnly(), Device: device})
	if err != nil {
		return nil, err
	}
	// It is not the sandbox's: the guest unmounts it with its last container, so that everything is on
	// the disk before the VM ends.
	s := &agent.Storage{
		Driver: addr.Driver, Source: addr.Source, Fstype: d.FSType, Options: slices.Clone(d.Options), MountPoint: v.guest,
	}
	if id, ok, _ := d.Group(); ok { // checked when it was read
		s.FsGroup = &agent.FSGroup{GroupId: id}
	}
	return s, nil
}

// rawVolume is a disk of the host as a device node.
func (p *Pod) rawVolume(ctx context.Context, v *podVolume) (*agent.Device, error) {
	d, err := volume.ParseDevice(v.source)
	if err != nil {
		return nil, err
	}
	f, err := hostvolume.OpenDevice(d.Major, d.Minor, d.ReadOnly)
	if err != nil {
		return nil, err
	}
	addr, err := p.disks.PlugVolume(ctx, v.source, hypervisor.Block{File: f, ReadOnly: d.ReadOnly, Device: true})
	if err != nil {
		return nil, err
	}
	return &agent.Device{Type: addr.Driver, VmPath: addr.Source}, nil
}

// provideDevices brings a container's raw block devices into the VM.
func (p *Pod) provideDevices(ctx context.Context, m mountPlan) ([]*agent.Device, error) {
	var out []*agent.Device
	for path, v := range m.raw {
		if err := p.makeVolume(ctx, v, path); err != nil {
			return nil, err
		}
		out = append(out, &agent.Device{Type: v.device.Type, VmPath: v.device.VmPath, ContainerPath: path})
	}
	slices.SortFunc(out, func(a, b *agent.Device) int { return strings.Compare(a.ContainerPath, b.ContainerPath) })
	return out, nil
}

// disks are the paths of raw block devices, for the conversion.
func (m mountPlan) disks() map[string]bool {
	out := map[string]bool{}
	for path := range m.raw {
		out[path] = true
	}
	return out
}
