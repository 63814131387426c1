// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package life owns the goroutines of a pod.
package life

import (
	"context"
	"sync"
)

// Life owns a pod's goroutines: they get its context and are waited for in end.
type Life struct {
	ctx    context.Context // the lifetime that goroutines are handed
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	ended bool // guarded by mu
	wg    sync.WaitGroup
}

// New begins a life.
func New() *Life {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Life{ctx: ctx, cancel: cancel}
}

// Spawn starts a goroutine unless the life has ended.
func (l *Life) Spawn(fn func(ctx context.Context)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.wg.Go(func() { fn(l.ctx) })
	return true
}

// End cancels the context and waits for all goroutines.
func (l *Life) End(cause error) {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.cancel(cause)
	l.wg.Wait()
}

// Cancel cancels the context. Goroutines can be started until End.
func (l *Life) Cancel(cause error) { l.cancel(cause) }

// Context is the context that the goroutines are handed.
func (l *Life) Context() context.Context { return l.ctx }
