// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

const (
	inARow   = 20 // starts from a template, one after the other
	atOnce   = 8
	idlePods = 10
)

// templates is a configuration whose VMs start from a template that is there, in a directory of its own.
func (b *bench) templates(ctx context.Context) (config string, remove func(), err error) {
	state, err := os.MkdirTemp("/run", "coco-b-") // sockets have short names
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(state) }
	config = filepath.Join(b.dir, "template.toml")
	text := fmt.Sprintf("[runtime]\nstate_dir = %q\ntemplate = \"private\"\n", state)
	err = os.WriteFile(config, []byte(text), 0o600)
	if err == nil {
		program := filepath.Join(harness.Prefix(), "bin", "coco")
		out, berr := exec.CommandContext(ctx, program, "template", "build", "--config", config).CombinedOutput()
		if berr != nil {
			err = fmt.Errorf("coco template build: %w: %s", berr, out)
		}
	}
	if err != nil {
		remove()
		return "", nil, err
	}
	return config, remove, nil
}

// benchTemplate holds starts from a template against boots of the same run.
func benchTemplate(ctx context.Context, b *bench) ([]Figure, error) {
	config, remove, err := b.templates(ctx)
	if err != nil {
		return nil, err
	}
	defer remove()
	from := []string{"--runtime-config-path", config}
	if _, err := b.once(ctx, from); err != nil { // fills the layer cache
		return nil, err
	}
	var floors, starts, pods []float64
	for i := range inARow {
		s, err := b.once(ctx, from)
		if err != nil {
			return nil, err
		}
		starts = append(starts, s)
		if i >= b.runs {
			continue
		}
		f, err := floor(ctx)
		if err != nil {
			return nil, fmt.Errorf("floor: %w", err)
		}
		floors = append(floors, f.took.Seconds())
		if err := b.onePod(ctx, &pods, nil, from...); err != nil {
			return nil, err
		}
	}
	warm, err := b.together(ctx, from)
	if err != nil {
		return nil, err
	}
	cold, err := b.together(ctx, nil)
	if err != nil {
		return nil, err
	}
	const base = "bare VM to Health.Check"
	figures := []Figure{
		against("template", "ctr run --rm true from a template, layers cached", "s", "≤ 0.4", starts, base, floors),
		against("template", "pod's VM started from a template", "s", "≤ 0.2", pods, base, floors),
		against("template", fmt.Sprintf("slowest of %d starts in a row", inARow), "s", "≤ 1.5",
			[]float64{slices.Max(starts)}, "their median", starts),
		against("template", fmt.Sprintf("%d × ctr run --rm true at once from a template", atOnce), "s", "≤ 0.5",
			[]float64{warm}, "booted", []float64{cold}),
	}
	memory, err := b.idleMemory(ctx, from)
	return append(figures, memory...), err
}

// once runs `true` in a pod of its own.
func (b *bench) once(ctx context.Context, extra []string) (float64, error) {
	if err := warmMemory(); err != nil {
		return 0, err
	}
	args := append([]string{"run", "--rm", "--runtime", harness.Runtime}, extra...)
	r, err := b.ctr(ctx, append(args, harness.Image, b.id(), "true")...)
	return r.Took.Seconds(), err
}

// together runs `true` in several pods at once, and returns how long all of them took.
func (b *bench) together(ctx context.Context, extra []string) (float64, error) {
	ids := make([]string, atOnce)
	for i := range ids {
		ids[i] = b.id()
	}
	errs := make([]error, atOnce)
	var wg sync.WaitGroup
	start := time.Now()
	for i, id := range ids {
		wg.Go(func() {
			args := append([]string{"run", "--rm", "--runtime", harness.Runtime}, extra...)
			_, errs[i] = b.ctr(ctx, append(args, harness.Image, id, "true")...)
		})
	}
	wg.Wait()
	return time.Since(start).Seconds(), errors.Join(errs...)
}

// idleMemory is the memory of a pod that does nothing, its share in common pages counted: of pods from a template, and
// of as many that booted.
func (b *bench) idleMemory(ctx context.Context, from []string) ([]Figure, error) {
	warm, err := b.idle(ctx, from)
	if err != nil {
		return nil, err
	}
	cold, err := b.idle(ctx, nil)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("memory of an idle pod from a template, one of %d", idlePods)
	return []Figure{against("template", name, "MiB", "", warm, "booted", cold)}, nil
}

// idle starts pods and returns the proportional set size of each, shim and VMM together, in MiB.
func (b *bench) idle(ctx context.Context, extra []string) (sizes []float64, err error) {
	var ids []string
	for range idlePods {
		id, remove, err := b.detached(ctx, harness.Runtime, extra...)
		if err != nil {
			return nil, err
		}
		defer remove()
		ids = append(ids, id)
	}
	time.Sleep(shimRest)
	for _, id := range ids {
		shim, vmm, err := harness.Pids(id)
		if err != nil {
			return nil, err
		}
		s, err := smaps(shim)
		if err != nil {
			return nil, err
		}
		v, err := smaps(vmm)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, (s["Pss"]+v["Pss"])/1024)
	}
	return sizes, nil
}
