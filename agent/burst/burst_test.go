// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package burst

import (
	"errors"
	"runtime"
	"runtime/debug"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
)

// TestBigRequestsAreNoted: a big request, and one that cannot be decoded, begin the wait after which memory is given
// back. A real guest's memory is measured in tests/agent.
func TestBigRequestsAreNoted(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		size  int
		err   error
		noted bool
	}{
		"small": {size: 100}, "big": {size: bigRequest, noted: true}, "broken": {err: broken, noted: true},
	} {
		var w Watch
		err := w.Decoder(func(req any) error {
			req.(*pb.CopyFileRequest).Data = make([]byte, tc.size)
			return tc.err
		})(&pb.CopyFileRequest{})
		if !errors.Is(err, tc.err) || (w.timer != nil) != tc.noted {
			t.Errorf("%s: %v, noted: %t, want %t", name, err, w.timer != nil, tc.noted)
		}
		w.Close()
		w.note()
		if w.timer != nil && w.timer.Stop() {
			t.Errorf("%s: it waits after its end", name)
		}
	}
}

// TestNoFreeMemoryStays: the runtime's scavenger hides some megabytes from FreeOSMemory in one round of a few hundred.
// giveBack finds them, and the heap grows to a bound only.
func TestNoFreeMemoryStays(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))  // as most guests have
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as the agent does
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(24 << 20))
	var kept []*[]byte
	for round := range 60 {
		for range 4 {
			kept = append(kept, new(make([]byte, 3<<20)), new(make([]byte, 4<<20)))
			clear(kept)
			kept = kept[:0]
		}
		for i := range 1000 {
			kept = append(kept, new(make([]byte, (i*i)%4000)))
		}
		clear(kept)
		kept = kept[:0]
		giveBack()
		if free, released := idle(); free > spare() && free+released <= most {
			t.Fatalf("round %d: %d KiB stay", round, free>>10)
		}
	}
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapSys > most+16<<20 {
		t.Errorf("the heap has grown to %d MiB", m.HeapSys>>20)
	}
}
