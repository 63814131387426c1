// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package disk gives block devices to a VM that runs: the layers of images, the writable layers of containers, and
// disks for volumes.
//
// A layer is plugged for the first container that has it and unplugged after the last. The files of writable layers
// and of emptyDirs are made here, sparse, and written into the journal before; those that were not given back are
// removed at the end (RemoveAll). A Set returns where the guest finds a disk; the caller has
// it mounted.
package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// VM is the part of a VM that its disks need. One that takes disks while it runs is a hypervisor.BlockPlugger, and one
// that knows where those of its boot are a hypervisor.BlockLocator.
type VM interface {
	ID() string
	Done() <-chan struct{}
}

// Journal writes down the files of disks, so that they are removed when the shim dies.
type Journal interface {
	Update(change func(*state.Pod)) error
	Disks() []string
}

// Set is the block devices of one VM. A layer that several containers have is plugged once.
type Set struct {
	vm      VM
	journal Journal
	runtime configs.Runtime
	alone   string // the only container of the pod, "" where others may come

	mu sync.Mutex
	by map[string]*plug // guarded by mu; layers
}

// New makes the Set of a VM. alone is the id of the container of a pod of one, else empty.
func New(vm VM, j Journal, r configs.Runtime, alone string) *Set {
	return &Set{vm: vm, journal: j, runtime: r, alone: alone, by: map[string]*plug{}}
}

type plug struct {
	refs  int           // guarded by Set.mu
	ready chan struct{} // closed when addr, err and ended are set
	gone  chan struct{} // closed when it is unplugged
	addr  hypervisor.BlockAddress
	err   error
	ended bool // plugging failed while its own container was being cancelled: it says nothing to others
}

// blockID names a layer as a device: as much of its root hash as a serial number holds (20 bytes on
// virtio).
func blockID(l *layer.Layer) string { return l.Hex()[:20] }

// Blocks describes layers to the hypervisor, each once.
func Blocks(layers []*layer.Layer) []hypervisor.Block {
	var out []hypervisor.Block
	seen := map[string]bool{}
	for _, l := range layers {
		if id := blockID(l); !seen[id] {
			seen[id] = true
			out = append(out, hypervisor.Block{ID: id, File: l.File, ReadOnly: true})
		}
	}
	return out
}

// Adopt notes the devices that were in the VM from boot, without a reference: the container that
// they are for takes one.
func (s *Set) Adopt(bs []hypervisor.Block) error {
	if len(bs) == 0 {
		return nil
	}
	loc, ok := s.vm.(hypervisor.BlockLocator)
	if !ok {
		return fmt.Errorf("vm %s cannot locate its block devices: %w", s.vm.ID(), errdefs.ErrNotImplemented)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range bs {
		addr, ok := loc.BlockAddress(b.ID)
		if !ok {
			return fmt.Errorf("vm %s does not know its block device %s", s.vm.ID(), b.ID)
		}
		pl := &plug{ready: make(chan struct{}), gone: make(chan struct{}), addr: addr}
		close(pl.ready)
		s.by[b.ID] = pl
	}
	return nil
}

// take makes sure that a layer is plugged and holds it. Of several containers that want one layer the first plugs it.
// When that one is cancelled meanwhile, the next one plugs.
func (s *Set) take(ctx context.Context, l *layer.Layer) (hypervisor.BlockAddress, error) {
	id := blockID(l)
	for {
		s.mu.Lock()
		pl, there := s.by[id]
		if there && pl.refs < 0 { // being unplugged
			gone := pl.gone
			s.mu.Unlock()
			select {
			case <-gone:
				continue
			case <-ctx.Done():
				return hypervisor.BlockAddress{}, context.Cause(ctx)
			}
		}
		if there {
			pl.refs++
			s.mu.Unlock()
			addr, err := pl.await(ctx, s, id)
			if err != nil && pl.abandoned() {
				continue
			}
			return addr, err
		}
		pl = &plug{refs: 1, ready: make(chan struct{}), gone: make(chan struct{})}
		s.by[id] = pl
		s.mu.Unlock()
		pl.addr, pl.err = s.plug(ctx, hypervisor.Block{ID: id, File: l.File, ReadOnly: true})
		if pl.err != nil {
			pl.ended = ctx.Err() != nil
			s.mu.Lock()
			delete(s.by, id)
			s.mu.Unlock()
			close(pl.gone)
		}
		close(pl.ready)
		return pl.addr, pl.err
	}
}

// await waits until another container's layer is plugged.
func (pl *plug) await(ctx context.Context, s *Set, id string) (hypervisor.BlockAddress, error) {
	select {
	case <-pl.ready:
		return pl.addr, pl.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-pl.ready: // the reference counts already: the caller's undo gives it back
		return pl.addr, pl.err
	default:
		pl.refs--
		return hypervisor.BlockAddress{}, fmt.Errorf("wait for block device %s: %w", id, context.Cause(ctx))
	}
}

// abandoned says whether plugging ended with the container that did it.
func (pl *plug) abandoned() bool {
	select {
	case <-pl.ready:
		return pl.ended
	default:
		return false
	}
}

// drop gives a layer back and unplugs it when nobody else holds it.
func (s *Set) drop(ctx context.Context, id string) error {
	s.mu.Lock()
	pl, ok := s.by[id]
	if !ok {
		s.mu.Unlock()
		return nil
	}
	if pl.refs--; pl.refs > 0 {
		s.mu.Unlock()
		return nil
	}
	pl.refs = -1
	s.mu.Unlock()
	err := s.unplug(ctx, id)
	s.mu.Lock()
	delete(s.by, id)
	s.mu.Unlock()
	close(pl.gone)
	return err
}

func (s *Set) plug(ctx context.Context, b hypervisor.Block) (hypervisor.BlockAddress, error) {
	bp, ok := s.vm.(hypervisor.BlockPlugger)
	if !ok {
		return hypervisor.BlockAddress{}, fmt.Errorf("hot-plug on %s: %w", s.vm.ID(), errdefs.ErrNotImplemented)
	}
	return bp.PlugBlock(ctx, b)
}

func (s *Set) unplug(ctx context.Context, id string) error {
	bp, ok := s.vm.(hypervisor.BlockPlugger)
	if !ok {
		return nil
	}
	select {
	case <-s.vm.Done():
		return nil
	default:
	}
	err := bp.UnplugBlock(ctx, id)
	select {
	case <-s.vm.Done(): // the device went with its VM
		return nil
	default:
		return err
	}
}

// Attach plugs a container's layers and returns them as the guest sees them, the topmost first. The
// files are closed in any case: the VMM has its own descriptors.
func (s *Set) Attach(ctx context.Context, list []*layer.Layer, u *undo.Stack) (_ []rootfs.Attached, err error) {
	defer func() { err = errors.Join(err, layers.Close(list)) }()
	var out []rootfs.Attached
	for _, l := range list {
		addr, err := s.take(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("attach layer %s to vm %s: %w", l.Hex(), s.vm.ID(), err)
		}
		id := blockID(l)
		u.Push("unplug layer "+l.Hex(), func(ctx context.Context) error { return s.drop(ctx, id) })
		out = append(out, rootfs.Attached{Params: l.Params, Address: addr})
	}
	return out, nil
}
