// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ClockWindow is how far the host may move the wall clock, in all: certificates and tokens are judged by it.
// A clock that the VMM has set is seconds off.
const ClockWindow = 10 * time.Minute

// unset is a time before which a clock cannot have been set by anybody.
var unset = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC)

// Clock is the guest's wall clock as the host may set it.
type Clock struct {
	mu   sync.Mutex    // requests of the host come side by side
	base time.Time     // guarded by mu; the wall clock's reading when the machine started, before the host's first word
	late time.Duration // guarded by mu; by which the first setting may put the clock forward, beside the window
}

// NewClock reads the clock. Every later change of it counts against the window. late is how long the guest may have
// been saved, with its clock standing still: contract.TemplateAge for a template, else 0.
func NewClock(late time.Duration) *Clock {
	return &Clock{base: time.Now().Add(-uptime()).Round(0), late: late}
}

// uptime is the time since the machine started, which cannot be set.
func uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail
	return time.Duration(ts.Nano())
}

// Set sets the wall clock, within the window.
func (c *Clock) Set(sec, usec int64) error {
	if err := c.check(sec, usec, uptime()); err != nil {
		return err
	}
	return SetClock(sec, usec)
}

// check admits times near the reading of a clock that was never changed since NewClock. A clock that was
// never set, on a machine without one of its own, may be set forward; so may, once, that of a guest that was saved.
func (c *Clock) check(sec, usec int64, up time.Duration) error {
	if err := inRange(sec, usec); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	to := time.Unix(sec, usec*int64(time.Microsecond)).UTC()
	if c.base.Before(unset) && to.After(unset) {
		c.base = to.Add(-up)
	}
	late := c.late
	c.late = 0
	if by := to.Sub(c.base.Add(up)); by > ClockWindow && by <= late+ClockWindow {
		c.base = to.Add(-up)
	}
	if by := to.Sub(c.base.Add(up)); by.Abs() > ClockWindow {
		return fmt.Errorf("set clock to %s, %s from the guest's own: a host may move it by %s in all: %w",
			to.Format(time.RFC3339), by.Round(time.Second), ClockWindow, errdefs.ErrPermissionDenied)
	}
	return nil
}

// maxTime keeps nanoseconds within 64 bits.
const maxTime = 1 << 33

func inRange(sec, usec int64) error {
	if sec < 0 || sec > maxTime || usec < 0 || usec >= int64(time.Second/time.Microsecond) {
		return fmt.Errorf("set clock to %d s %d µs: out of range: %w", sec, usec, errdefs.ErrInvalidArgument)
	}
	return nil
}

// SetClock sets the wall clock.
func SetClock(sec, usec int64) error {
	if err := inRange(sec, usec); err != nil {
		return err
	}
	tv := unix.Timeval{Sec: sec, Usec: usec}
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}
