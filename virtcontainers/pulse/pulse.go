// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pulse tells a guest that hangs from one that is slow.
//
// Time is counted in ticks and not by the clock: a host that was suspended, or a shim that was stopped, gets one
// tick for all of it, so that its guests do not seem to have been silent meanwhile.
package pulse

import (
	"context"
	"fmt"
	"time"
)

// awaitTicks is in how many ticks Await counts.
const awaitTicks = 20

// Await waits for done, at most so long. It says whether that is still to come: false when ctx ended too.
func Await(ctx context.Context, done <-chan struct{}, most time.Duration) (missing bool) {
	t := time.NewTicker(most / awaitTicks)
	defer t.Stop()
	for range awaitTicks {
		select {
		case <-done:
			return false
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
	select {
	case <-done:
		return false
	default:
		return ctx.Err() == nil
	}
}

// Beat checks that a guest still answers.
type Beat struct {
	Interval time.Duration
	Misses   int                        // intervals without an answer, after that of the question
	Heard    func() uint64              // counts the guest's answers to all calls
	Ping     func(context.Context)      // returns with the answer, or when ctx ends
	Paused   func(context.Context) bool // whether the VM is stopped on purpose, so that it cannot answer
	Gone     <-chan struct{}            // closed when the VM has ended
}

// Watch returns an error when the guest has not answered anything for too long, nil when ctx or the VM ends. A guest
// that answers other calls is not asked, and one that has not answered is not asked again: its late answer counts.
func (b Beat) Watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	t := time.NewTicker(b.Interval)
	var asked chan struct{} // nil while no question is open
	defer func() {
		t.Stop()
		cancel()
		if asked != nil {
			<-asked
		}
	}()
	missed, last := 0, b.Heard()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.Gone:
			return nil
		case <-asked:
			asked, missed = nil, 0
			continue
		case <-t.C:
		}
		if now := b.Heard(); now != last {
			last, missed = now, 0
			continue
		}
		if asked == nil {
			done := make(chan struct{})
			go func() { // waited for above
				defer close(done)
				b.Ping(ctx)
			}()
			asked = done
			continue
		}
		if missed++; missed < b.Misses {
			continue
		}
		if b.Paused(ctx) {
			missed = 0
			continue
		}
		return fmt.Errorf("its agent has not answered for %d times %s", b.Misses, b.Interval)
	}
}
