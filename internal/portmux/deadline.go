// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"sync"
	"time"
)

// deadline closes a channel at a time that may be changed.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer   // guarded by mu; nil while none runs
	over  chan struct{} // guarded by mu; nil until somebody wants it
	ended bool          // guarded by mu; no time is set any more
}

// wait returns what is closed when the time is over.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

func (d *deadline) channel() chan struct{} {
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

// set changes the time, also for who waits already; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return
	}
	d.stop()
	if isClosed(d.channel()) {
		d.over = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		close(d.over)
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer { // else it was replaced while it fired
			d.timer = nil
			close(d.over)
		}
	})
	d.timer = timer
}

// end stops the timer for good. A timer that still runs keeps its connection in memory, and starts a goroutine for it
// when the time is over.
func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.stop()
}

// stop needs mu.
func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
