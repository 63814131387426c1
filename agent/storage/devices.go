// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/api/agent"
)

const maxDevices = 256

// Devices waits for the block devices that a container gets as such and puts their numbers in the
// guest into its specification: into Linux.Devices and into the device cgroup's rules.
func (m *Manager) Devices(ctx context.Context, cid string, devices []*agent.Device, spec *specs.Spec) error {
	if len(devices) > maxDevices {
		return fmt.Errorf("%d devices are more than %d: %w", len(devices), maxDevices, errdefs.ErrInvalidArgument)
	}
	renumber := map[number]number{}
	for _, d := range devices {
		if err := m.device(ctx, cid, d, spec, renumber); err != nil {
			return fmt.Errorf("device %.80q (type %.40q, address %.80q): %w", d.GetContainerPath(), d.GetType(),
				d.GetVmPath(), err)
		}
	}
	if spec.Linux.Resources == nil {
		return nil
	}
	rules := spec.Linux.Resources.Devices
	for i := range rules {
		r := &rules[i]
		if r.Type != "b" && r.Type != "" || r.Major == nil || r.Minor == nil {
			continue
		}
		if to, ok := renumber[number{*r.Major, *r.Minor}]; ok {
			r.Type, r.Major, r.Minor = "b", &to.major, &to.minor
		}
	}
	return nil
}

type number struct{ major, minor int64 }

func (m *Manager) device(ctx context.Context, cid string, d *agent.Device, spec *specs.Spec,
	renumber map[number]number,
) error {
	if drivers[d.GetType()].device == nil {
		return fmt.Errorf("devices of this type are not supported; %s are: %w", strings.Join(DeviceTypes(), ", "),
			errdefs.ErrNotImplemented)
	}
	address := d.GetVmPath()
	if address == "" {
		address = d.GetId()
	}
	dev, dir, err := m.findDisk(ctx, d.GetType(), address)
	if err != nil {
		return err
	}
	if dir != "" {
		m.mu.Lock()
		m.devices[cid] = append(m.devices[cid], dir)
		m.mu.Unlock()
	}
	to, err := parseNumber(dev.Number)
	if err != nil {
		return err
	}
	found := false
	for i := range spec.Linux.Devices {
		ld := &spec.Linux.Devices[i]
		if ld.Path != d.GetContainerPath() {
			continue
		}
		if ld.Type != "b" {
			return invalid(fmt.Errorf("the specification has it as type %.10q, not as a block device", ld.Type))
		}
		renumber[number{ld.Major, ld.Minor}] = to
		ld.Major, ld.Minor = to.major, to.minor
		found = true
	}
	if !found {
		return invalid(errors.New("the specification has no device at this path"))
	}
	return nil
}

func parseNumber(s string) (number, error) {
	a, b, _ := strings.Cut(s, ":")
	major, err1 := strconv.ParseInt(a, 10, 32)
	minor, err2 := strconv.ParseInt(b, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return number{}, fmt.Errorf("device number %q: %w", s, err)
	}
	return number{major, minor}, nil
}

// removeDevices releases the disks of a container. Those that fail stay recorded for the next call.
func (m *Manager) removeDevices(cid string) error {
	m.mu.Lock()
	dirs := m.devices[cid]
	delete(m.devices, cid)
	for _, others := range m.devices { // containers of a pod may have a disk in common
		dirs = slices.DeleteFunc(dirs, func(d string) bool { return slices.Contains(others, d) })
	}
	m.mu.Unlock()
	var errs []error
	var left []string
	for _, d := range dirs {
		if err := disk.Forget(d); err != nil {
			errs, left = append(errs, err), append(left, d)
		}
	}
	if len(left) > 0 {
		m.mu.Lock()
		m.devices[cid] = append(left, m.devices[cid]...)
		m.mu.Unlock()
	}
	return errors.Join(errs...)
}
