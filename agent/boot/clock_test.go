// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestTheClockStaysInItsWindow: however often the host asks, it does not come further than the window from
// where the clock would be by itself.
func TestTheClockStaysInItsWindow(t *testing.T) {
	base := time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC)
	c := &Clock{base: base}
	for _, tc := range []struct {
		up, by time.Duration
		ok     bool
	}{
		{0, 0, true},
		{time.Second, 9 * time.Minute, true},
		{2 * time.Second, ClockWindow, true},
		{3 * time.Second, ClockWindow + time.Second, false},
		{4 * time.Second, 18 * time.Minute, false}, // another nine
		{5 * time.Second, -ClockWindow, true},
		{6 * time.Second, -ClockWindow - time.Second, false},
		{40 * 24 * time.Hour, time.Minute, true},
		{40 * 24 * time.Hour, -40 * 24 * time.Hour, false},
		{time.Second, 4 * 365 * 24 * time.Hour, false},
	} {
		to := base.Add(tc.up + tc.by)
		err := c.check(to.Unix(), int64(to.Nanosecond()/1000), tc.up)
		if (err == nil) != tc.ok || err != nil && !errdefs.IsPermissionDenied(err) {
			t.Errorf("after %v, moved by %v: %v; want ok %v", tc.up, tc.by, err, tc.ok)
		}
	}
	for _, bad := range [][2]int64{{-1, 0}, {0, -1}, {0, 1_000_000}, {math.MaxInt64, 0}, {math.MinInt64, math.MinInt64}} {
		if err := c.check(bad[0], bad[1], 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("check(%d, %d) = %v", bad[0], bad[1], err)
		}
	}
	if err := c.check(86400, 0, 0); !errdefs.IsPermissionDenied(err) {
		t.Errorf("back to 1970 = %v", err)
	}
}

// TestAClockThatWasNeverSet can be set once, and is one like any other from then on.
func TestAClockThatWasNeverSet(t *testing.T) {
	c := &Clock{base: time.Unix(0, 0)}
	now := time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC)
	if err := c.check(now.Unix(), 0, time.Minute); err != nil {
		t.Error(err)
	}
	if err := c.check(now.Add(time.Hour).Unix(), 0, 2*time.Minute); !errdefs.IsPermissionDenied(err) {
		t.Errorf("the second time = %v", err)
	}
}

func TestNewClockReadsTheClock(t *testing.T) {
	c := NewClock(0)
	now := time.Now()
	if d := now.Sub(c.base.Add(uptime())).Abs(); d > time.Minute {
		t.Errorf("the clock is %v from what it reads", d)
	}
}

// TestEntropyIsNotCredited: the host's bytes are written to the device, which mixes them in but does not credit
// them as entropy. With a file in place of the device the write is visible.
func TestEntropyIsNotCredited(t *testing.T) {
	f := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	data := []byte("what the host calls random")
	if err := addEntropy(f, data); !errors.Is(err, unix.ENOTTY) { // a file cannot reseed
		t.Errorf("addEntropy = %v, want ENOTTY", err)
	}
	if b, err := os.ReadFile(f); err != nil || !bytes.Equal(b, data) {
		t.Errorf("written %q, %v; want the data and nothing else", b, err)
	}
	for _, bad := range [][]byte{nil, make([]byte, maxSeed+1)} {
		if err := addEntropy(f, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes = %v", len(bad), err)
		}
	}
}

// TestTheClockOfASavedGuest follows the host's once, by as much as the guest may have been saved; then it is one like
// any other.
func TestTheClockOfASavedGuest(t *testing.T) {
	base := time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC)
	const up, late = 3 * time.Second, 24 * time.Hour
	for _, tc := range []struct {
		first, second time.Duration // by which the host moves the clock, from where it would be by itself
		ok, ok2       bool
	}{
		{23 * time.Hour, 23*time.Hour + ClockWindow, true, true},
		{23 * time.Hour, 23*time.Hour + ClockWindow + time.Second, true, false},
		{23 * time.Hour, 0, true, false},
		{time.Minute, 23 * time.Hour, true, false},
		{-time.Hour, 23 * time.Hour, false, false},
		{late + ClockWindow, late, true, true},
		{late + ClockWindow + time.Second, 0, false, true},
	} {
		c := &Clock{base: base, late: late}
		for i, by := range []time.Duration{tc.first, tc.second} {
			err := c.check(base.Add(up+by).Unix(), 0, up)
			if want := []bool{tc.ok, tc.ok2}[i]; (err == nil) != want {
				t.Errorf("moved by %v and then by %v: setting %d: %v", tc.first, tc.second, i+1, err)
			}
		}
	}
}

// TestSettingsAtOnce: of settings that come side by side only one has the time of a saved guest.
func TestSettingsAtOnce(t *testing.T) {
	base := time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC)
	const rounds, settings = 200, 8
	for range rounds {
		c := &Clock{base: base, late: 24 * time.Hour}
		var wg sync.WaitGroup
		var admitted atomic.Int32
		for i := range settings {
			to := base.Add(time.Duration(i+1) * time.Hour) // each is outside the window of every other
			wg.Go(func() {
				if c.check(to.Unix(), 0, 0) == nil {
					admitted.Add(1)
				}
			})
		}
		wg.Wait()
		if n := admitted.Load(); n != 1 {
			t.Fatalf("%d of %d settings were admitted; want 1", n, settings)
		}
	}
}
