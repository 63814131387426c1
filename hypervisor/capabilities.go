// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import "context"

// DevicePlugger is a VM that can be given PCI devices of the host while it runs. path is the device's
// directory in sysfs; the driver vfio-pci must hold it. The returned string is its PCI path in the guest.
type DevicePlugger interface {
	PlugDevice(ctx context.Context, id, path string) (string, error)
	UnplugDevice(ctx context.Context, id string) error
}

// Counter is a VM whose VMM counts what its devices do: by device and name of the counter.
type Counter interface {
	Counters(ctx context.Context) (map[string]map[string]uint64, error)
}

// PowerButton is a VM whose guest can be asked to switch itself off.
type PowerButton interface {
	PressPowerButton(ctx context.Context) error
}

// Resizer is a VM that could be resized. A VM's size is part of its launch digest or of the tables that
// are, so a driver that has this method refuses.
type Resizer interface {
	Resize(ctx context.Context, vcpus int, memoryMiB uint64) error
}

// Pauser is a VM that can tell whether its processors are stopped on purpose, so that its guest cannot answer.
type Pauser interface {
	Paused(ctx context.Context) (bool, error)
}
