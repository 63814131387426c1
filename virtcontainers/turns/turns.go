// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package turns is a semaphore with a bounded queue: some operations run at once, some wait, and further ones fail.
package turns

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/containerd/errdefs"
)

// Turns are the turns of one kind of thing.
type Turns struct {
	what    string
	held    chan struct{}
	waiting atomic.Int64
	most    int64
}

// New makes turns of which so many can be held at once, and for which so many can wait. The name in errors is a plural,
// "starts of processes".
func New(what string, held, waiting int) *Turns {
	return &Turns{what: what, held: make(chan struct{}, held), most: int64(waiting)}
}

// Take waits for a turn, which done gives back.
func (t *Turns) Take(ctx context.Context) (done func(), err error) {
	done = func() { <-t.held }
	select {
	case t.held <- struct{}{}:
		return done, nil
	default:
	}
	defer t.waiting.Add(-1)
	if t.waiting.Add(1) > t.most {
		return nil, fmt.Errorf("%d %s of this pod are under way and %d wait, no more are taken: %w", cap(t.held), t.what,
			t.most, errdefs.ErrResourceExhausted)
	}
	select {
	case t.held <- struct{}{}:
		return done, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("it waited behind other %s of this pod, of which %d are under way at once: %w", t.what,
			cap(t.held), context.Cause(ctx))
	}
}
