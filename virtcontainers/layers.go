// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/rootfs"
)

// layerRequest says where a container's root file system is on the host.
func layerRequest(req ContainerRequest) (LayerRequest, error) {
	out := LayerRequest{Mounts: req.Rootfs}
	if req.Spec == nil || req.Spec.Root == nil {
		if len(req.Rootfs) == 0 {
			return out, fmt.Errorf("the specification has no root and no mounts of a root file system were given: %w",
				errdefs.ErrInvalidArgument)
		}
		return out, nil
	}
	out.ReadOnly, out.Root = req.Spec.Root.Readonly, req.Spec.Root.Path
	if !filepath.IsAbs(out.Root) {
		out.Root = filepath.Join(req.Bundle, out.Root)
	}
	return out, nil
}

// opening is a search for layers that runs beside the boot of the VM.
type opening struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when layers and err are set
	layers []*layer.Layer
	err    error
}

// open starts the search in a goroutine of the pod.
func (p *Pod) open(req ContainerRequest) (*opening, error) {
	lr, err := layerRequest(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(p.life.ctx)
	o := &opening{cancel: cancel, done: make(chan struct{})}
	if !p.life.spawn(func(context.Context) {
		defer close(o.done)
		o.layers, o.err = p.opts.Host.Layers.Open(ctx, lr)
	}) {
		cancel()
		return nil, errShutdown
	}
	return o, nil
}

// wait returns the layers once they are there.
func (o *opening) wait(ctx context.Context) ([]*layer.Layer, error) {
	select {
	case <-o.done:
		return o.layers, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ready returns the layers when they are there already.
func (o *opening) ready() ([]*layer.Layer, bool) {
	select {
	case <-o.done:
		return o.layers, o.err == nil
	default:
		return nil, false
	}
}

// failed returns the error of a search that has failed already.
func (o *opening) failed() error {
	select {
	case <-o.done:
		return o.err
	default:
		return nil
	}
}

// close gives the layers up, after a search that goes on was ended.
func (o *opening) close() error {
	o.cancel()
	<-o.done
	layers := o.layers
	o.layers = nil
	return closeLayers(layers)
}

// plugs are the block devices of the VM, by layer. A layer that several containers have is plugged
// once.
type plugs struct {
	mu sync.Mutex
	by map[string]*plug // guarded by mu
}

type plug struct {
	refs  int           // guarded by plugs.mu
	ready chan struct{} // closed when addr, err and ended are set
	gone  chan struct{} // closed when it is unplugged
	addr  hypervisor.BlockAddress
	err   error
	ended bool // plugging failed while its own container was being cancelled: it says nothing to others
}

// blockID names a layer as a device: as much of its root hash as a serial number holds (20 bytes on
// virtio).
func blockID(l *layer.Layer) string { return l.Hex()[:20] }

// blocks describes layers to the hypervisor, each once.
func blocks(layers []*layer.Layer) []hypervisor.Block {
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

// adopt notes the devices that were in the VM from boot, without a reference: the container that
// they are for takes one.
func (ps *plugs) adopt(vm hypervisor.VM, bs []hypervisor.Block) error {
	if len(bs) == 0 {
		return nil
	}
	loc, ok := vm.(hypervisor.BlockLocator)
	if !ok {
		return fmt.Errorf("vm %s cannot locate its block devices: %w", vm.ID(), errdefs.ErrNotImplemented)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, b := range bs {
		addr, ok := loc.BlockAddress(b.ID)
		if !ok {
			return fmt.Errorf("vm %s does not know its block device %s", vm.ID(), b.ID)
		}
		pl := &plug{ready: make(chan struct{}), gone: make(chan struct{}), addr: addr}
		close(pl.ready)
		ps.by[b.ID] = pl
	}
	return nil
}

// take makes sure that a layer is plugged and holds it. Of several containers that want one layer the first plugs it.
// When that one is cancelled meanwhile, the next one plugs.
func (ps *plugs) take(ctx context.Context, vm hypervisor.VM, l *layer.Layer) (hypervisor.BlockAddress, error) {
	id := blockID(l)
	for {
		ps.mu.Lock()
		pl, there := ps.by[id]
		if there && pl.refs < 0 { // being unplugged
			gone := pl.gone
			ps.mu.Unlock()
			select {
			case <-gone:
				continue
			case <-ctx.Done():
				return hypervisor.BlockAddress{}, context.Cause(ctx)
			}
		}
		if there {
			pl.refs++
			ps.mu.Unlock()
			addr, err := pl.await(ctx, ps, id)
			if err != nil && pl.abandoned() {
				continue
			}
			return addr, err
		}
		pl = &plug{refs: 1, ready: make(chan struct{}), gone: make(chan struct{})}
		ps.by[id] = pl
		ps.mu.Unlock()
		pl.addr, pl.err = plugBlock(ctx, vm, hypervisor.Block{ID: id, File: l.File, ReadOnly: true})
		if pl.err != nil {
			pl.ended = ctx.Err() != nil
			ps.mu.Lock()
			delete(ps.by, id)
			ps.mu.Unlock()
			close(pl.gone)
		}
		close(pl.ready)
		return pl.addr, pl.err
	}
}

// await waits until another container's layer is plugged.
func (pl *plug) await(ctx context.Context, ps *plugs, id string) (hypervisor.BlockAddress, error) {
	select {
	case <-pl.ready:
		return pl.addr, pl.err
	case <-ctx.Done():
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
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
func (ps *plugs) drop(ctx context.Context, vm hypervisor.VM, id string) error {
	ps.mu.Lock()
	pl, ok := ps.by[id]
	if !ok {
		ps.mu.Unlock()
		return nil
	}
	if pl.refs--; pl.refs > 0 {
		ps.mu.Unlock()
		return nil
	}
	pl.refs = -1
	ps.mu.Unlock()
	err := unplugBlock(ctx, vm, id)
	ps.mu.Lock()
	delete(ps.by, id)
	ps.mu.Unlock()
	close(pl.gone)
	return err
}

func plugBlock(ctx context.Context, vm hypervisor.VM, b hypervisor.Block) (hypervisor.BlockAddress, error) {
	bp, ok := vm.(hypervisor.BlockPlugger)
	if !ok {
		return hypervisor.BlockAddress{}, fmt.Errorf("hot-plug on %s: %w", vm.ID(), errdefs.ErrNotImplemented)
	}
	return bp.PlugBlock(ctx, b)
}

func unplugBlock(ctx context.Context, vm hypervisor.VM, id string) error {
	bp, ok := vm.(hypervisor.BlockPlugger)
	if !ok {
		return nil
	}
	select {
	case <-vm.Done():
		return nil
	default:
	}
	err := bp.UnplugBlock(ctx, id)
	select {
	case <-vm.Done(): // the device went with its VM
		return nil
	default:
		return err
	}
}

// attach plugs a container's layers and returns them as the guest sees them, the topmost first. The
// files are closed in any case: the VMM has its own descriptors.
func (p *Pod) attach(ctx context.Context, layers []*layer.Layer, u *undo.Stack) (_ []rootfs.Attached, err error) {
	defer func() { err = errors.Join(err, closeLayers(layers)) }()
	var out []rootfs.Attached
	for _, l := range layers {
		addr, err := p.plugs.take(ctx, p.vm, l)
		if err != nil {
			return nil, fmt.Errorf("attach layer %s to vm %s: %w", l.Hex(), p.vm.ID(), err)
		}
		id := blockID(l)
		u.Push("unplug layer "+l.Hex(), func(ctx context.Context) error { return p.plugs.drop(ctx, p.vm, id) })
		out = append(out, rootfs.Attached{Params: l.Params, Address: addr})
	}
	return out, nil
}
