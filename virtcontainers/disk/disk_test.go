// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
)

// slowVM is a VM whose plugging of a disk ends when the test says so, or with its context.
type slowVM struct {
	begun chan context.Context // one for each plugging
	end   chan error
	done  chan struct{}
}

func newSlowVM() *slowVM {
	return &slowVM{begun: make(chan context.Context), end: make(chan error), done: make(chan struct{})}
}

func (v *slowVM) ID() string            { return "slow" }
func (v *slowVM) Done() <-chan struct{} { return v.done }

func (v *slowVM) PlugBlock(ctx context.Context, _ hypervisor.Block) (hypervisor.BlockAddress, error) {
	v.begun <- ctx
	select {
	case err := <-v.end:
		return hypervisor.BlockAddress{Driver: "scsi", Source: "1:0"}, err
	case <-ctx.Done():
		return hypervisor.BlockAddress{}, context.Cause(ctx)
	}
}

func (v *slowVM) UnplugBlock(context.Context, string) error { return nil }

type taken struct {
	addr hypervisor.BlockAddress
	err  error
}

// takers starts one container that plugs the layer, and another that waits for it. It runs in a bubble of synctest.
func takers(ctx context.Context, vm *slowVM) (first, second chan taken) {
	l := &layer.Layer{} // its root hash is all zero
	s := New(vm, nil, configs.Runtime{}, "")
	take := func(ctx context.Context) chan taken {
		c := make(chan taken, 1)
		go func() {
			addr, err := s.take(ctx, l)
			c <- taken{addr, err}
		}()
		return c
	}
	first = take(ctx)
	<-vm.begun
	second = take(context.Background())
	synctest.Wait()
	return first, second
}

// Two containers wait for one layer. The cancellation of the one that plugs does not fail the other.
func TestACancelledContainerLeavesTheLayerToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := newSlowVM()
		ctx, cancel := context.WithCancel(t.Context())
		first, second := takers(ctx, vm)
		cancel()
		if r := <-first; !errors.Is(r.err, context.Canceled) {
			t.Errorf("the cancelled container got %v", r.err)
		}
		<-vm.begun // the second one plugs
		vm.end <- nil
		if r := <-second; r.err != nil || r.addr.Source != "1:0" {
			t.Errorf("the other container got %+v", r)
		}
	})
}

// A refusal of the VMM holds for every container that waits: none tries again.
func TestARefusedLayerFailsAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := newSlowVM()
		first, second := takers(t.Context(), vm)
		refused := errors.New("no slot is free")
		vm.end <- refused
		for _, c := range []chan taken{first, second} {
			if r := <-c; !errors.Is(r.err, refused) {
				t.Errorf("got %v, want the refusal", r.err)
			}
		}
	})
}
