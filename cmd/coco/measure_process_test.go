// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run measures a VM of usual size in a process of its own: 4 MiB of firmware, 12 MB of kernel, 60 MB
// of initrd. It returns the process's peak memory in bytes and its time.
type process struct {
	bin  string
	args []string
}

func newProcess(tb testing.TB) process {
	tb.Helper()
	bin := filepath.Join(tb.TempDir(), "coco")
	if out, err := exec.CommandContext(tb.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		tb.Skipf("cannot build the command here: %v: %s", err, out)
	}
	blob := func(name string, size int64) string {
		path := write(tb, name, nil)
		if err := os.Truncate(path, size); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	return process{bin, []string{
		"measure", "snp", "--firmware", firmware(tb, 4<<20), "--kernel", blob("kernel", 12_000_000), "--initrd", blob("initrd", 60_000_000),
		"--append", "quiet", "--vcpus", "4", "--cpu-model", "EPYC-v4",
	}}
}

func (p process) run(tb testing.TB) (peak int64, took time.Duration) {
	tb.Helper()
	debug.FreeOSMemory() // a child's peak begins with its parent's size
	start := time.Now()
	cmd := exec.CommandContext(tb.Context(), p.bin, p.args...)
	out, err := cmd.Output()
	took = time.Since(start)
	if err != nil || len(strings.TrimSpace(string(out))) != 96 {
		tb.Fatalf("%v = %q, %v", p.args, out, err)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		tb.Skip("this system does not tell the peak memory of a process")
	}
	return usage.Maxrss << 10, took
}

// The files are streamed: whatever their size, the command stays small. Its time depends on the
// machine and is left to the benchmark.
func TestMeasureStaysSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command")
	}
	if peak, took := newProcess(t).run(t); peak > 32<<20 {
		t.Errorf("coco measure snp used %d MiB, want at most 32 (in %s)", peak>>20, took)
	}
}

// output runs it and takes any answer.
func (p process) output(tb testing.TB) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), p.bin, p.args...).Output()
	if err != nil || len(out) == 0 {
		tb.Fatalf("%v = %q, %v", p.args, out, err)
	}
	return string(out)
}

func BenchmarkMeasureProcess(b *testing.B) {
	p := newProcess(b)
	var most int64
	for b.Loop() {
		peak, _ := p.run(b)
		most = max(most, peak)
	}
	b.ReportMetric(float64(most)/(1<<20), "peak-MiB")
}
