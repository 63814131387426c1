// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/hypervisor/vmm"
	plan "github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/tests/harness"
)

// bareSpec is the VM of a pod of the default shape, without disks and interfaces.
func bareSpec() (hypervisor.VMSpec, func(), error) {
	cfg := configs.Default()
	cfg.Hypervisor.GuestDir = filepath.Join(harness.Prefix(), "share/coco/guest")
	files, err := cfg.Hypervisor.Boot()
	if err != nil {
		return hypervisor.VMSpec{}, nil, err
	}
	kernel, err := os.Open(files.Kernel)
	if err != nil {
		return hypervisor.VMSpec{}, nil, err
	}
	initrd, err := os.Open(files.Initrd)
	if err != nil {
		return hypervisor.VMSpec{}, nil, errors.Join(err, kernel.Close())
	}
	shape := plan.Shape{VCPUs: cfg.Hypervisor.DefaultVCPUs, MemoryMiB: cfg.Hypervisor.DefaultMemoryMiB}
	spec := plan.VM("bench-floor", cfg.Hypervisor, shape, hypervisor.Boot{
		Kernel: kernel, Initrd: initrd,
		Cmdline: files.Cmdline,
	})
	return spec, func() { _ = kernel.Close(); _ = initrd.Close() }, nil
}

// bare is what a VM without shim, network and container takes.
type bare struct {
	took    time.Duration      // from exec of QEMU to the agent's answer to Health.Check
	metrics string             // what the agent says of itself
	memory  map[string]float64 // of QEMU, as smaps has it
}

// floor boots the bare VM.
func floor(ctx context.Context) (b bare, err error) {
	spec, release, err := bareSpec()
	if err != nil {
		return b, err
	}
	defer release()
	if err := warmMemory(); err != nil {
		return b, err
	}
	fork := func(ctx context.Context, _ hypervisor.Place) (hypervisor.Process, error) {
		return launch.Start(ctx, launch.Options{Exe: filepath.Join(harness.Prefix(), "bin/containerd-shim-coco-v2")})
	}
	driver := vmm.NewDriver(qemu.New(qemu.Options{Path: configs.Default().Hypervisor.Path}), fork)
	place, err := driver.Begin(ctx, hypervisor.Place{ID: spec.ID})
	if err != nil {
		return b, err
	}
	start := time.Now()
	vm, err := place.Launch(ctx, spec)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, vm.Stop(context.Background())) }()
	conn, err := vm.Dial(ctx, contract.PortAgent)
	if err != nil {
		return b, err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	if _, err := agent.NewHealthClient(client).Check(ctx, &agent.CheckRequest{}); err != nil {
		return b, err
	}
	b.took = time.Since(start)
	m, err := agent.NewAgentServiceClient(client).GetMetrics(ctx, &agent.GetMetricsRequest{})
	if err != nil {
		return b, err
	}
	b.metrics = m.GetMetrics()
	b.memory, err = smaps(place.PID())
	return b, err
}

// benchStart is figures 1 and 2: the floor and the real thing take turns.
func benchStart(ctx context.Context, b *bench) ([]Figure, error) {
	run := func(image string, extra ...string) (float64, error) {
		if err := warmMemory(); err != nil {
			return 0, err
		}
		args := append([]string{"run", "--rm", "--runtime", harness.Runtime}, extra...)
		r, err := b.ctr(ctx, append(args, image, b.id(), "true")...)
		return r.Took.Seconds(), err
	}
	if _, err := run(harness.Image); err != nil { // fills the layer cache
		return nil, err
	}
	memory := filepath.Join(b.dir, "memory.toml")
	inMemoryKeys := "[runtime]\nwritable_layer = \"memory\"\n" + harness.TemplateKey()
	if err := os.WriteFile(memory, []byte(inMemoryKeys), 0o600); err != nil {
		return nil, err
	}
	var floors, cached, inMemory, cold []float64
	for i := range b.runs {
		f, err := floor(ctx)
		if err != nil {
			return nil, fmt.Errorf("floor: %w", err)
		}
		floors = append(floors, f.took.Seconds())
		s, err := run(harness.Image)
		if err != nil {
			return nil, err
		}
		cached = append(cached, s)
		if s, err = run(harness.Image, "--runtime-config-path", memory); err != nil {
			return nil, err
		}
		inMemory = append(inMemory, s)
		config := filepath.Join(b.dir, "cold.toml")
		text := fmt.Sprintf("[runtime]\nlayer_cache = %q\n%s", filepath.Join(b.dir, "cold-"+strconv.Itoa(i)),
			harness.TemplateKey())
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return nil, err
		}
		if s, err = run(harness.Image, "--runtime-config-path", config); err != nil {
			return nil, err
		}
		cold = append(cold, s)
	}
	const base = "bare VM to Health.Check"
	return []Figure{
		alone("start", base, "s", "", floors...),
		against("start", "ctr run --rm true, layers cached", "s", "≤ 1.3", cached, base, floors),
		against("start", "the same, the writable layer on its disk", "s", "≤ 1.1", cached, "in memory", inMemory),
		against("start", "ctr run --rm true, layers cold", "s", "", cold, base, floors),
	}, nil
}

// agentRSS reads the agent's resident memory, in MiB, out of its metrics.
func (b bare) agentRSS() (float64, error) {
	for _, l := range strings.Split(b.metrics, "\n") {
		f := strings.Fields(l)
		if len(f) == 2 && strings.HasPrefix(f[0], "coco_agent_resident_bytes") {
			v, err := strconv.ParseFloat(f[1], 64)
			return v / (1 << 20), err
		}
	}
	return 0, fmt.Errorf("the agent's metrics have no coco_agent_resident_bytes:\n%s", b.metrics)
}
