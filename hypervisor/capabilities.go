// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import "context"

// The interfaces of this file are the capabilities of a running VM: what only some drivers offer. A caller asserts a VM
// to one of them, and its error names the step that needs it.

// BlockPlugger is a VM that can gain and lose block devices while it runs.
type BlockPlugger interface {
	PlugBlock(ctx context.Context, b Block) (BlockAddress, error)
	UnplugBlock(ctx context.Context, id string) error
}

// BlockLocator tells where the guest finds a block device that was there from boot.
type BlockLocator interface {
	BlockAddress(id string) (BlockAddress, bool)
}

// NICPlugger is a VM that can gain and lose network interfaces while it runs. The returned
// string is the guest's PCI path of the new interface.
type NICPlugger interface {
	PlugNIC(ctx context.Context, n NIC) (string, error)
	UnplugNIC(ctx context.Context, id string) error
}

// Pauser is a VM that can tell whether its processors are stopped on purpose, so that its guest cannot answer.
type Pauser interface {
	Paused(ctx context.Context) (bool, error)
}
