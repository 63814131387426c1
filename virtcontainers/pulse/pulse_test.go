// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pulse

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		start := time.Now()
		if !Await(t.Context(), done, 10*time.Second) || time.Since(start) != 10*time.Second {
			t.Errorf("Await of what never comes took %s", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if Await(ctx, done, 10*time.Second) || time.Since(start) != 13*time.Second {
			t.Errorf("Await did not end with its context, after %s", time.Since(start))
		}
		time.AfterFunc(9*time.Second, func() { close(done) })
		if Await(t.Context(), done, 10*time.Second) || time.Since(start) != 22*time.Second {
			t.Errorf("Await did not see what came, after %s", time.Since(start))
		}
	})
}

// guest answers pings after a time of its own.
type guest struct {
	delay  atomic.Int64 // of an answer
	heard  atomic.Uint64
	pings  atomic.Int64
	paused atomic.Bool
}

func (g *guest) beat() Beat {
	return Beat{
		Interval: 30 * time.Second, Misses: 10, Heard: g.heard.Load,
		Paused: func(context.Context) bool { return g.paused.Load() },
		Ping: func(ctx context.Context) {
			g.pings.Add(1)
			t := time.NewTimer(time.Duration(g.delay.Load()))
			defer t.Stop()
			select {
			case <-t.C:
				g.heard.Add(1)
			case <-ctx.Done():
			}
		},
	}
}

const never = 1000 * time.Hour

// Of a VM that has ended nobody asks any more.
func TestWatchEndsWithTheVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g guest
		b, gone := g.beat(), make(chan struct{})
		b.Gone = gone
		time.AfterFunc(75*time.Second, func() { close(gone) })
		start := time.Now()
		if err := b.Watch(t.Context()); err != nil || time.Since(start) != 75*time.Second {
			t.Errorf("Watch() = %v after %s, want nil with the end of the VM", err, time.Since(start))
		}
	})
}

func TestWatch(t *testing.T) {
	for name, tc := range map[string]struct {
		guest func(*guest)
		dead  bool
		pings int64 // at most, in six hours
	}{
		"one that hangs":                   {func(g *guest) { g.delay.Store(int64(never)) }, true, 1},
		"one that answers":                 {func(*guest) {}, false, 360},
		"one that takes minutes to answer": {func(g *guest) { g.delay.Store(int64(4 * time.Minute)) }, false, 90},
		"one that is paused":               {func(g *guest) { g.delay.Store(int64(never)); g.paused.Store(true) }, false, 1},
		"one that hangs when it goes on": {func(g *guest) {
			g.delay.Store(int64(never))
			g.paused.Store(true)
			time.AfterFunc(time.Hour, func() { g.paused.Store(false) })
		}, true, 1},
		"one that answers everything but pings": {func(g *guest) {
			g.delay.Store(int64(never))
			for at := range 6 * 60 {
				time.AfterFunc(time.Duration(at)*time.Minute, func() { g.heard.Add(1) })
			}
		}, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &guest{}
				tc.guest(g)
				ctx, cancel := context.WithTimeout(t.Context(), 6*time.Hour)
				defer cancel()
				start := time.Now()
				err := g.beat().Watch(ctx)
				if (err != nil) != tc.dead || err == nil && time.Since(start) != 6*time.Hour {
					t.Errorf("after %s: %v", time.Since(start), err)
				}
				if n := g.pings.Load(); n == 0 || n > tc.pings {
					t.Errorf("%d pings, want 1 to %d", n, tc.pings)
				}
			})
		})
	}
}

func TestAHangIsSeenAfterTheStatedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &guest{}
		g.delay.Store(int64(never))
		start := time.Now()
		if err := g.beat().Watch(t.Context()); err == nil || time.Since(start) != 11*30*time.Second {
			t.Errorf("after %s: %v, want an error after the question's interval and ten more", time.Since(start), err)
		}
	})
}
