// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lock is a mutex whose Lock can be cancelled.
package lock

import "context"

// Mutex is held by one goroutine at a time. It is a channel, so that a select can wait for it and for other events:
// the send `m <- struct{}{}` locks it.
type Mutex chan struct{}

// New returns a free mutex.
func New() Mutex { return make(Mutex, 1) }

// Lock waits for the mutex. It returns the cause of ctx's end if that comes first; a free mutex is taken even then.
func (m Mutex) Lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	default:
	}
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Unlock frees the mutex, which the caller holds.
func (m Mutex) Unlock() { <-m }
