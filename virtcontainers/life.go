// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"sync"
)

// life owns a pod's goroutines: they get its context and are waited for in end.
type life struct {
	ctx    context.Context // the lifetime that goroutines are handed
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	ended bool // guarded by mu
	wg    sync.WaitGroup
}

func newLife() *life {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &life{ctx: ctx, cancel: cancel}
}

// spawn starts a goroutine unless the life has ended.
func (l *life) spawn(fn func(ctx context.Context)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.wg.Go(func() { fn(l.ctx) })
	return true
}

// end cancels the context and waits for all goroutines.
func (l *life) end(cause error) {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.cancel(cause)
	l.wg.Wait()
}
