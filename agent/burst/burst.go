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
