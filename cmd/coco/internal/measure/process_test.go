// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	if out, err := exec.CommandContext(tb.Context(), "go", "build", "-o", bin,
		"github.com/coco-shim/coco/cmd/coco").CombinedOutput(); err != nil {
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
		"measure", "snp", "--firmware", firmware(tb, 4<<20), "--kernel", blob("kernel", 12_000_000), "--initrd",
		blob("initrd", 60_000_000),
		"--append", "quiet", "--vcpus", "4", "--cpu-model", "EPYC-v4",
	}}
}

func (p process) run(tb testing.TB) (peak int64, took time.Duration) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), os.Args[0], append([]string{p.bin}, p.args...)...)
	cmd.Env = append(os.Environ(), peakVariable+"=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || len(strings.TrimSpace(string(out))) != 96 {
		tb.Fatalf("%v = %q, %v: %s", p.args, out, err, stderr.String())
	}
	if _, err := fmt.Sscan(stderr.String(), &peak, &took); err != nil {
		tb.Fatalf("%q: %v", stderr.String(), err)
	}
	return peak, took
}

const peakVariable = "COCO_TEST_PEAK"

// With peakVariable this program runs its arguments and tells their peak memory and time. A process's peak begins with
// the size of the one that started it, so that must be a small one.
func init() {
	if os.Getenv(peakVariable) == "" {
		return
	}
	start := time.Now()
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	took := time.Since(start)
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if err != nil || !ok {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, usage.Maxrss<<10, int64(took))
	os.Exit(0)
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
