// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vmm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
)

// kind launches what a test says.
type kind struct {
	launch func(hypervisor.Process) (hypervisor.VM, error)
	dir    string
}

func (*kind) Name() string { return "kind" }

func (k *kind) Launch(_ context.Context, _ hypervisor.VMSpec, p hypervisor.Process, dir string) (hypervisor.VM, error) {
	k.dir = dir
	return k.launch(p)
}

func TestBegin(t *testing.T) {
	boom := errors.New("boom")
	place := hypervisor.Place{ID: "pod", NetNS: "/ns", Dir: "/dir", User: 7, Processes: 9}
	begin := func(t *testing.T, k *kind) (hypervisor.Pending, *process) {
		t.Helper()
		proc := newProcess()
		p, err := NewDriver(k, func(_ context.Context, p hypervisor.Place) (hypervisor.Process, error) {
			if p != place {
				t.Errorf("forked in %+v, want %+v", p, place)
			}
			return proc, nil
		}).Begin(t.Context(), place)
		if err != nil || p.PID() != 4711 || p.Err() != nil {
			t.Fatalf("Begin() = %v, %v", p, err)
		}
		return p, proc
	}
	t.Run("the fork fails", func(t *testing.T) {
		d := NewDriver(&kind{}, func(context.Context, hypervisor.Place) (hypervisor.Process, error) { return nil, boom })
		if p, err := d.Begin(t.Context(), place); !errors.Is(err, boom) || p != nil || d.Name() != "kind" {
			t.Errorf("Begin() = %v, %v", p, err)
		}
	})
	t.Run("the launch fails", func(t *testing.T) {
		k := &kind{launch: func(hypervisor.Process) (hypervisor.VM, error) { return nil, boom }}
		p, proc := begin(t, k)
		if _, err := p.Launch(t.Context(), hypervisor.VMSpec{ID: "pod"}); !errors.Is(err, boom) || !ended(proc.done) {
			t.Errorf("Launch() = %v, ended: %v", err, ended(proc.done))
		}
		if got := reason(t, p.Err()); k.dir != "/dir" || got.VM != "pod" || got.Phase != hypervisor.PhaseVMM ||
			got.Reason != "its process ended: signal: killed" || got.Stderr != "last words" {
			t.Errorf("Err() = %+v", got)
		}
	})
	t.Run("another pod's VM", func(t *testing.T) {
		p, proc := begin(t, &kind{})
		if _, err := p.Launch(t.Context(), hypervisor.VMSpec{ID: "x"}); !errdefs.IsInvalidArgument(err) ||
			!ended(proc.done) {
			t.Errorf("Launch() = %v, ended: %v", err, ended(proc.done))
		}
	})
	t.Run("Abort", func(t *testing.T) {
		p, proc := begin(t, &kind{})
		proc.immune = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.Abort(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Abort() of a process that does not end = %v", err)
		}
		proc.immune, proc.refuses = false, boom
		if err := p.Abort(t.Context()); !errors.Is(err, boom) {
			t.Errorf("Abort() = %v", err)
		}
		proc.refuses = nil
		for range 2 {
			if err := p.Abort(t.Context()); err != nil || !ended(p.Done()) {
				t.Errorf("Abort() = %v", err)
			}
		}
	})
}
