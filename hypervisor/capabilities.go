// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"context"
	"os"
)

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

// Saver is a VM whose state can be saved, for others to start from. It is of no use then but to be stopped.
type Saver interface {
	// Save waits until the guest waits for its first request, stops it and writes its state to an empty file.
	Save(ctx context.Context, state *os.File) error
}

// Cloned is a VM that may have started from a saved one. The guest's random number generator then begins like that of
// every other VM that did: before anything else is asked of the guest, it has to get entropy of its own.
type Cloned interface {
	Cloned() bool
}

// Pauser is a VM that can tell whether its processors are stopped on purpose, so that its guest cannot answer.
type Pauser interface {
	Paused(ctx context.Context) (bool, error)
}
