// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package worktest bounds the work of a decoder on one input. A decoder that bounds the bytes that it reads can still
// be made to run for long, or to take much memory, by a few of them. A fuzz target that begins with
//
//	defer worktest.Bound(t, len(input))()
//
// finds such inputs. Memory (bytes allocated) is checked always. Processor time depends on the machine, so it is
// checked only where COCO_FUZZ_CPU is set, as tests/fuzz.sh does, and not in ordinary tests.
package worktest

import (
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"syscall"
	"testing"
	"time"
)

// The cost that an input may have, and in addition each of its bytes. Fuzzing makes code some five times slower.
const (
	baseAlloc, byteAlloc = 16 << 20, 512
	baseCPU, byteCPU     = 300 * time.Millisecond, 2 * time.Microsecond
)

// hopeless is the factor at which an input is given up before it ends. The fuzzer keeps an input that panics.
const hopeless = 8

// Bound starts to count, for an input of so many bytes. The function that it returns fails the test if the work since
// then, on this goroutine, was more than such an input may cost.
func Bound(t testing.TB, size int) func() {
	t.Helper()
	return Times(t, size, 1)
}

// Times is Bound with limits that are a multiple: for targets that run a decoder often, or a second one to compare
// with.
func Times(t testing.TB, size, factor int) func() {
	t.Helper()
	m := meter{alloc: uint64(factor) * uint64(baseAlloc+byteAlloc*size)}
	if os.Getenv("COCO_FUZZ_CPU") != "" {
		m.cpu = time.Duration(factor) * (baseCPU + time.Duration(size)*byteCPU)
	}
	runtime.LockOSThread()
	stop := m.watch()
	alloc, cpu := allocated(), used()
	return func() {
		t.Helper()
		alloc, cpu = allocated()-alloc, used()-cpu
		runtime.UnlockOSThread()
		stop()
		if what := m.problem(size, alloc, cpu); what != "" {
			t.Error(what)
		}
	}
}

// meter holds limits; 0 is none.
type meter struct {
	alloc uint64
	cpu   time.Duration
}

func (m meter) problem(size int, alloc uint64, cpu time.Duration) string {
	switch {
	case alloc > m.alloc:
		return fmt.Sprintf("an input of %d bytes takes %d MiB of memory, more than %d", size, alloc>>20, m.alloc>>20)
	case m.cpu > 0 && cpu > m.cpu:
		return fmt.Sprintf("an input of %d bytes takes %v of a processor, more than %v", size,
			cpu.Round(time.Millisecond), m.cpu)
	}
	return ""
}

// watch ends the process when an input is beyond all measure, before it ends the machine.
func (m meter) watch() (stop func()) {
	if m.cpu == 0 {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	begin, alloc := time.Now(), allocated()
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			// A machine that runs other things too gets four times as long.
			if a, d := allocated()-alloc, time.Since(begin); a > hopeless*m.alloc || d > 4*hopeless*m.cpu {
				panic(fmt.Sprintf("an input takes %d MiB and %v, and has not ended", a>>20, d.Round(time.Millisecond)))
			}
		}
	}()
	return func() { close(done); <-ended }
}

// allocated is how much memory was ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// used is the processor time of this thread.
func used() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var r syscall.Rusage
	if syscall.Getrusage(thread, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
