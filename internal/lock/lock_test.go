// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestOneHoldsAndOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, held, most := New(), 0, 0
		for range 10 {
			go func() {
				if err := m.Lock(t.Context()); err != nil {
					t.Error(err)
					return
				}
				held++
				most = max(most, held)
				held--
				m.Unlock()
			}()
		}
		synctest.Wait()
		if most != 1 {
			t.Errorf("%d goroutines held the mutex at once", most)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, why := New(), errors.New("the pod ends")
		ctx, cancel := context.WithCancelCause(t.Context())
		if err := m.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() { got <- m.Lock(ctx) }()
		synctest.Wait()
		cancel(why)
		if err := <-got; !errors.Is(err, why) {
			t.Errorf("a waiting Lock returned %v, want the cause", err)
		}
		m.Unlock()
		if err := m.Lock(ctx); err != nil {
			t.Errorf("a free mutex was refused: %v", err)
		}
	})
}
