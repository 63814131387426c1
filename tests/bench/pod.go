// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/tests/harness"
)

// Annotations by which CRI tells a pod's VM from its containers.
const (
	podKind = contract.CRIContainerType + "="
	podID   = contract.CRISandboxID + "="
)

// benchPod holds a pod's start against the boot of the same VM, and times a further container in it.
func benchPod(ctx context.Context, b *bench) ([]Figure, error) {
	if _, err := b.ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, harness.Image, b.id(), "true"); err != nil {
		return nil, err // fills the layer cache
	}
	var floors, pods, further []float64
	for range b.runs {
		f, err := floor(ctx)
		if err != nil {
			return nil, fmt.Errorf("floor: %w", err)
		}
		floors = append(floors, f.took.Seconds())
		if err := b.onePod(ctx, &pods, &further); err != nil {
			return nil, err
		}
	}
	return []Figure{
		against("pod", "pod's VM started, layers cached", "s", "≤ 1.4", pods, "bare VM to Health.Check", floors),
		alone("pod", "a further container in a running pod: run of true", "s", "≤ 1.5", further...),
	}, nil
}

// onePod times a pod and, unless further is nil, containers in it.
func (b *bench) onePod(ctx context.Context, pods, further *[]float64, extra ...string) error {
	pod := b.id()
	defer func() {
		b.daemon.Ctr(context.WithoutCancel(ctx), "task", "rm", "-f", pod)
		b.daemon.Ctr(context.WithoutCancel(ctx), "container", "rm", pod)
	}()
	if err := warmMemory(); err != nil {
		return err
	}
	args := append([]string{"run", "-d", "--runtime", harness.Runtime}, extra...)
	r, err := b.ctr(ctx, append(args, "--annotation", podKind+"sandbox", "--annotation", podID+pod, harness.Image, pod,
		"true")...)
	if err != nil {
		return err
	}
	*pods = append(*pods, r.Took.Seconds())
	if further == nil {
		return nil
	}
	for range 3 {
		r, err := b.ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, "--annotation", podKind+"container", "--annotation",
			podID+pod, harness.Image, b.id(), "true")
		if err != nil {
			return err
		}
		*further = append(*further, r.Took.Seconds())
	}
	return nil
}
