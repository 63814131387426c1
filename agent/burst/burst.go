// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package burst gives memory back to the kernel after big requests.
//
// Go keeps for minutes what it has got from the kernel, and ttrpc keeps its buffers of up to 4 MiB for two collections.
// An idle guest would stay larger by tens of megabytes after files were copied into it, or after a host has sent it
// nonsense.
package burst

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

// Bounds of bursts.
const (
	bigRequest = 64 << 10        // bytes
	quiet      = 2 * time.Second // without a further big request
)

// Watch looks at requests. The zero value is ready to use.
type Watch struct {
	mu     sync.Mutex
	timer  *time.Timer // guarded by mu; nil before the first big request
	closed bool        // guarded by mu
}

// Decoder wraps what decodes a request: it looks at the request's size.
func (w *Watch) Decoder(decode func(any) error) func(any) error {
	return func(req any) error {
		err := decode(req)
		if m, ok := req.(proto.Message); err != nil || ok && proto.Size(m) >= bigRequest {
			w.note() // also of what cannot be decoded: nobody knows its size
		}
		return err
	}
}

// note begins the wait for quiet again.
func (w *Watch) note() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
	case w.timer == nil:
		w.timer = time.AfterFunc(quiet, giveBack)
	default:
		w.timer.Reset(quiet)
	}
}

// giveBack collects twice, since pools of buffers survive one collection, and returns what is free.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
	for range tries {
		if free, released := idle(); free <= spare() || free+released > most {
			return
		}
		useIdle()
		debug.FreeOSMemory()
	}
}

// Sizes of the runtime's heap.
const (
	cached = 512 << 10 // free pages that each processor may keep for itself
	block  = 32 << 10  // the biggest of the runtime's size classes
	tries  = 4         // the scavenger can come between each time
	most   = 48 << 20  // of unused heap: useIdle can make it grow by 4 MiB of addresses
)

// spare is how much stays free in the heap: the pages that processors keep, and as much again in pieces smaller than a
// block.
func spare() uint64 { return uint64(max(0, runtime.GOMAXPROCS(0))+1) * cached }

// useIdle allocates the heap's unused pages in blocks, without touching them, and drops them.
//
// FreeOSMemory passes over a part of the heap (4 MiB) that the runtime's own scavenger has marked as done, until a page
// in it is freed again. The scavenger does so wrongly when pages are freed above the place where it searches: it only
// goes down from there. Megabytes then stay for good (Go 1.26, runtime/mgcscavenge.go: find, scavengeOne, setEmpty).
// Freeing a block in each part removes the marks.
func useIdle() {
	free, released := idle()
	blocks := make([]strings.Builder, (free+released)/block)
	for i := range blocks {
		if free, released = idle(); free+released < spare() {
			break // the heap would have to grow
		}
		blocks[i].Grow(block) // does not clear it, as make would
	}
	runtime.KeepAlive(blocks)
}

// idle is how many bytes the heap has that are not in use: those that it holds, and those that the kernel has back.
func idle() (free, released uint64) {
	s := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}

// Close ends the wait.
func (w *Watch) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
	}
}
