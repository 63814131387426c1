// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/tests/harness"
)

// Configurations of the policy's suite: both boot their VMs, since a guest with initdata does.
const (
	withoutPolicy = "[runtime]\ntemplate = \"off\"\n"
	withPolicy    = withoutPolicy + "[hypervisor]\ninitdata = %q\n"
)

// benchPolicy starts the same container with a policy and without one, by turns, and reads the agent's memory. It
// times decisions in a guest too.
func benchPolicy(ctx context.Context, b *bench) ([]Figure, error) {
	initdata := filepath.Join(b.dir, "initdata.toml")
	configs := map[bool]string{
		false: filepath.Join(b.dir, "open.toml"),
		true:  filepath.Join(b.dir, "pinned.toml"),
	}
	err := errors.Join(os.WriteFile(configs[false], []byte(withoutPolicy), 0o600),
		os.WriteFile(configs[true], []byte(fmt.Sprintf(withPolicy, initdata)), 0o600), b.pin(ctx, initdata))
	if err != nil {
		return nil, err
	}
	took, memory := map[bool][]float64{}, map[bool][]float64{}
	for i := range b.runs + 1 { // the first fills the layer cache
		for _, pinned := range []bool{false, true} {
			if err := warmMemory(); err != nil {
				return nil, err
			}
			seconds, rss, err := b.startOnce(ctx, configs[pinned])
			if err != nil {
				return nil, err
			}
			if i > 0 {
				took[pinned], memory[pinned] = append(took[pinned], seconds), append(memory[pinned], rss)
			}
		}
	}
	decisions, err := b.decisions(ctx, configs[false])
	if err != nil {
		return nil, err
	}
	return []Figure{
		against("policy", "start of a container's VM and of the container, with a policy", "s", "≤ 1.05", took[true],
			"without", took[false]),
		against("policy", "agent RSS with a policy, a container running", "MiB", "+3", memory[true], "without",
			memory[false]),
		alone("policy", "a decision in the guest about a container of 5 with 40 variables each", "ms", "≤ 2", decisions...),
	}, nil
}

// pin writes initdata with the policy of a container that sleeps.
func (b *bench) pin(ctx context.Context, file string) error {
	id, archive := b.id(), filepath.Join(b.dir, "image.tar")
	if _, err := b.ctr(ctx, "images", "export", "--local", archive, harness.Image); err != nil {
		return err
	}
	if _, err := b.ctr(ctx, "container", "create", "--runtime", harness.Runtime, harness.Image, id, "sleep",
		"100000"); err != nil {
		return err
	}
	defer b.daemon.Ctr(context.WithoutCancel(ctx), "container", "rm", id)
	r, err := b.ctr(ctx, "container", "info", id)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(harness.Prefix(), "bin", "coco"), "policy", "gen", "container",
		"--offline", "--cache", "", "--images", archive, "--allow", "logs,stdin,stats", "-")
	cmd.Stdin = strings.NewReader(r.Stdout)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("coco policy gen container: %w: %s", err, &problems)
	}
	return os.WriteFile(file, text, 0o600)
}

// startOnce times the start of a container, from exec of ctr to its exit, and reads the resident memory of its agent,
// in MiB.
func (b *bench) startOnce(ctx context.Context, config string) (seconds, rss float64, err error) {
	id := b.id()
	defer func() {
		b.daemon.Ctr(context.WithoutCancel(ctx), "task", "rm", "-f", id)
		b.daemon.Ctr(context.WithoutCancel(ctx), "container", "rm", id)
	}()
	r, err := b.ctr(ctx, "run", "-d", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image, id,
		"sleep", "100000")
	if err != nil {
		return 0, 0, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(harness.Prefix(), "bin", "coco"), "metrics", "--pod", id).Output()
	if err != nil {
		return 0, 0, fmt.Errorf("coco metrics: %w", err)
	}
	rss, err = residentOf(string(out))
	return r.Took.Seconds(), rss, err
}

// residentOf finds the agent's resident memory in what coco metrics prints.
func residentOf(text string) (mib float64, err error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[0], "coco_agent_resident_bytes") {
			bytes, err := strconv.ParseFloat(f[1], 64)
			return bytes / (1 << 20), err
		}
	}
	return 0, fmt.Errorf("the pod's metrics have no coco_agent_resident_bytes:\n%s", text)
}

// decisions measures BenchmarkDecision of policy/gen in a guest: a container of a pod of 5 with 40 variables each.
func (b *bench) decisions(ctx context.Context, config string) ([]float64, error) {
	program := filepath.Join(b.dir, "gen.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./policy/gen")
	build.Dir, build.Env = harness.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go test -c ./policy/gen: %w: %s", err, out)
	}
	r, err := b.ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, "--mount",
		"type=bind,src="+program+",dst=/gen.test,options=rbind:ro", harness.Image, b.id(), "/gen.test", "-test.run", "^$",
		"-test.bench", "Decision", "-test.benchtime", "300x", "-test.count", "5")
	if err != nil {
		return nil, err
	}
	var out []float64
	for line := range strings.Lines(r.Stdout) {
		if f := strings.Fields(line); len(f) >= 4 && f[3] == "ns/op" {
			ns, err := strconv.ParseFloat(f[2], 64)
			if err != nil {
				return nil, err
			}
			out = append(out, ns/1e6)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the benchmark in the guest printed %q", r.Stdout)
	}
	return out, nil
}
