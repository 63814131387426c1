// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package throttle bounds how often something is told.
package throttle

import (
	"sync"
	"time"
)

// Bucket lets Burst events through at once, and then one in each Pause. It is full at first.
type Bucket struct {
	Burst int
	Pause time.Duration

	mu    sync.Mutex
	used  float64   // guarded by mu
	at    time.Time // guarded by mu; of the last event
	quiet uint64    // guarded by mu; events that were held back since the last that was let through
}

// Take says whether an event may be told, and how many before it were not.
func (b *Bucket) Take(now time.Time) (ok bool, quiet uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := now.Sub(b.at); d > 0 {
		b.used = max(0, b.used-d.Seconds()/b.Pause.Seconds())
		b.at = now
	}
	if b.used > float64(b.Burst-1) {
		b.quiet++
		return false, 0
	}
	b.used++
	quiet, b.quiet = b.quiet, 0
	return true, quiet
}
