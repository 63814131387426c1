// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// benchExec is figure 3: `true` in a running container, under coco and under runc.
func benchExec(ctx context.Context, b *bench) ([]Figure, error) {
	var coco, runc []float64
	for rt, dst := range map[string]*[]float64{harness.Runtime: &coco, harness.RuncRuntime: &runc} {
		id, remove, err := b.detached(ctx, rt)
		if err != nil {
			return nil, err
		}
		defer remove()
		for range b.runs * 2 {
			r, err := b.ctr(ctx, "task", "exec", "--exec-id", b.id(), id, "true")
			if err != nil {
				return nil, err
			}
			*dst = append(*dst, r.Took.Seconds())
		}
	}
	return []Figure{against("exec", "ctr task exec true", "s", "", coco, "runc", runc)}, nil
}

// benchParallel is figure 7: eight pods at once against eight times one.
func benchParallel(ctx context.Context, b *bench) ([]Figure, error) {
	run := func() error {
		_, err := b.ctr(ctx, "run", "--rm", "--runtime", harness.Runtime, harness.Image, b.id(), "true")
		return err
	}
	var single []float64
	for range b.runs {
		start := time.Now()
		if err := run(); err != nil {
			return nil, err
		}
		single = append(single, time.Since(start).Seconds())
	}
	took, err := b.together(ctx, nil)
	if err != nil {
		return nil, err
	}
	return []Figure{against("parallel", "8 × ctr run --rm true at once", "s", "≤ 0.8", []float64{took}, "8 × one",
		[]float64{atOnce * median(single)})}, nil
}

// shimRest is when a shim that nobody calls has given back what its start needed.
const shimRest = 4 * time.Second

// benchMemory is figure 5.
func benchMemory(ctx context.Context, b *bench) ([]Figure, error) {
	id, remove, err := b.detached(ctx, harness.Runtime)
	if err != nil {
		return nil, err
	}
	defer remove()
	shim, vmm, err := harness.Pids(id)
	if err != nil {
		return nil, err
	}
	fresh, err := smaps(shim)
	if err != nil {
		return nil, err
	}
	time.Sleep(shimRest)
	s, err := smaps(shim)
	if err != nil {
		return nil, err
	}
	v, err := smaps(vmm)
	if err != nil {
		return nil, err
	}
	guestRAM, err := b.guestMeminfo(ctx, id)
	if err != nil {
		return nil, err
	}
	alive, err := floor(ctx)
	if err != nil {
		return nil, err
	}
	rss, err := alive.agentRSS()
	if err != nil {
		return nil, err
	}
	// Not the share in what VMs have in common, the kernel's file: it depends on how many there are.
	beyond := func(m map[string]float64) []float64 { return []float64{(m["Rss"] - m["guest"] - m["jit"]) / 1024} }
	const mib = 1024 // smaps and meminfo count KiB
	figures := []Figure{
		alone("memory", "shim RSS, one container, at rest", "MiB", "≤ 16", s["Rss"]/mib),
		alone("memory", "shim anonymous, likewise", "MiB", "≤ 4", s["Anonymous"]/mib),
		alone("memory", "shim anonymous, right after the start", "MiB", "", fresh["Anonymous"]/mib),
		against("memory", "VMM beyond guest RAM, without translated code", "MiB", "≤ 1.05", beyond(v), "bare VM",
			beyond(alive.memory)),
		alone("memory", "translated code, only under emulation", "MiB", "≤ 128", v["jit"]/mib),
		alone("memory", "agent RSS, at boot", "MiB", "", rss),
		alone("memory", "guest memory in use at idle (MemTotal − MemAvailable − free pages of processors)", "MiB", "≤ 64",
			(guestRAM["MemTotal"]-guestRAM["MemAvailable"]-guestRAM[cachedPages])/mib),
	}
	sizes, err := benchSizes()
	return append(figures, sizes...), err
}

// benchSizes weighs what is installed.
func benchSizes() ([]Figure, error) {
	var figures []Figure
	for _, bin := range []string{"containerd-shim-coco-v2", "coco"} {
		info, err := os.Stat(filepath.Join(harness.Prefix(), "bin", bin))
		if err != nil {
			return nil, err
		}
		goal := ""
		if strings.HasPrefix(bin, "containerd-shim") {
			goal = "≤ 9"
		}
		figures = append(figures, alone("memory", bin+" stripped", "MB", goal, float64(info.Size())/1e6))
	}
	info, err := os.Stat(filepath.Join(harness.Prefix(), "share/coco/guest/initrd.img"))
	if err != nil {
		return nil, err
	}
	return append(figures, alone("memory", "initramfs", "MB", "", float64(info.Size())/1e6)), nil
}

// smaps sums a process's mappings in KiB by field; "guest" is the Pss of guest RAM, the one
// mapping that is by far the largest, and "jit" that of code which the process made itself.
func smaps(pid int) (map[string]float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	sum := map[string]float64{}
	var size, largest float64
	jit := false
	for _, l := range strings.Split(string(data), "\n") {
		f := strings.Fields(l)
		if len(f) >= 5 && len(f[1]) == 4 { // a mapping: range, permissions, offset, device, inode and perhaps a file
			jit = f[1] == "rwxp" && len(f) == 5
		}
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		key := strings.TrimSuffix(f[0], ":")
		n, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			continue
		}
		sum[key] += n
		switch key {
		case "Size":
			size = n
		case "Pss":
			if size > largest {
				largest, sum["guest"] = size, n
			}
			if jit {
				sum["jit"] += n
			}
		}
	}
	return sum, nil
}

// cachedPages is the key under which guestMeminfo counts the free pages that processors keep for themselves.
// MemAvailable leaves them out; in a fresh guest they are up to 23 MiB, which go back within half a minute.
const cachedPages = "cached pages"

// guestMeminfo is /proc/meminfo of a container's guest, in KiB, and cachedPages.
func (b *bench) guestMeminfo(ctx context.Context, id string) (map[string]float64, error) {
	r, err := b.ctr(ctx, "task", "exec", "--exec-id", b.id(), id, "cat", "/proc/meminfo", "/proc/zoneinfo")
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for _, l := range strings.Split(r.Stdout, "\n") {
		switch f := strings.Fields(l); {
		case len(f) == 3 && f[2] == "kB":
			m[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseFloat(f[1], 64)
		case len(f) == 2 && f[0] == "count:": // of a processor's pageset in a zone, in pages of 4 KiB
			pages, _ := strconv.ParseFloat(f[1], 64)
			m[cachedPages] += pages * 4
		}
	}
	return m, nil
}

// throughput runs a command with a stream on one side and returns MiB/s over size bytes.
func (b *bench) throughput(ctx context.Context, size int64, stdin io.Reader, args ...string) (float64, error) {
	cmd := b.daemon.Command(ctx, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stdin = stdin
	cmd.Stderr = os.Stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, out)
	if err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, err
	}
	if stdin == nil && n != size {
		return 0, fmt.Errorf("%d bytes came out of %d", n, size)
	}
	return float64(size) / (1 << 20) / time.Since(start).Seconds(), nil
}
