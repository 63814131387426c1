// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"strconv"
	"sync"
	"time"
)

// Refusals of requests that nobody has proven anything for are told in the audit log, so that operators see attacks. An
// attacker must not fill the disk by them: after a burst, one is told in each pause, with the number of those left out.
const (
	refusalBurst = 200
	refusalPause = time.Second
)

// throttle is a bucket of refusals that may be told. The zero value is full.
type throttle struct {
	mu    sync.Mutex
	used  float64   // guarded by mu
	at    time.Time // guarded by mu; of the last refusal
	quiet uint64    // guarded by mu; refusals that were not told since the last that was
}

// take says whether a refusal may be told, and how many before it were not.
func (t *throttle) take(now time.Time) (ok bool, quiet uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := now.Sub(t.at); d > 0 {
		t.used = max(0, t.used-d.Seconds()/refusalPause.Seconds())
		t.at = now
	}
	if t.used > refusalBurst-1 {
		t.quiet++
		return false, 0
	}
	t.used++
	quiet, t.quiet = t.quiet, 0
	return true, quiet
}

// recordRefusal writes an audit entry about a request of a stranger, unless there were too many.
func (b *Broker) recordRefusal(event, result string, fields map[string]string) {
	ok, quiet := b.strangers.take(b.cfg.Now())
	if !ok {
		b.counters.add("audit_left_out", event)
		return
	}
	if quiet > 0 {
		fields["left_out"] = strconv.FormatUint(quiet, 10)
	}
	b.record(event, result, fields)
}
