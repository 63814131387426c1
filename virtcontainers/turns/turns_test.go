// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package turns

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New("starts", 3, 10)
		var now, most, ran atomic.Int64
		for range 13 {
			go func() {
				done, err := turns.Take(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer done()
				if n := now.Add(1); n > most.Load() {
					most.Store(n)
				}
				time.Sleep(time.Second)
				now.Add(-1)
				ran.Add(1)
			}()
		}
		synctest.Wait()
		if _, err := turns.Take(t.Context()); !errdefs.IsResourceExhausted(err) ||
			!strings.Contains(err.Error(), "3 starts of this pod are under way and 10 wait") {
			t.Errorf("one too many = %v", err)
		}
		time.Sleep(1500 * time.Millisecond) // three have ended, three have begun
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		if _, err := turns.Take(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that waits too long = %v", err)
		}
		time.Sleep(10 * time.Second)
		if ran.Load() != 13 || most.Load() != 3 {
			t.Errorf("%d ran, at most %d at once, want 13 and 3", ran.Load(), most.Load())
		}
	})
}
