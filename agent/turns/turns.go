// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package turns orders the requests that change the guest: one after the other. A request for a container whose image
// the guest pulls waits for the registry before its turn, so that the others do not, and can be given up meanwhile.
package turns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/lock"
)

// Turns is held by the request whose turn it is. New makes one.
type Turns struct {
	lock.Mutex

	mu      sync.Mutex
	fetches []*fetch // guarded by mu
}

// fetch is a request for a container whose images are being pulled. Nothing of the container is there yet.
type fetch struct {
	id     string
	giveUp context.CancelCauseFunc
	done   chan struct{} // closed when the request goes on or has failed
}

// New returns a free Turns.
func New() *Turns { return &Turns{Mutex: lock.New()} }

// Take waits until no other request is changing the guest. done ends the turn; after an error it does nothing.
func (t *Turns) Take(ctx context.Context) (done func(), err error) {
	// a free turn is taken though ctx has ended: the rest of a removal does not wait
	if err := t.Lock(ctx); err != nil {
		return func() {}, fmt.Errorf("another request is changing the guest: %w", err)
	}
	return t.Unlock, nil
}

// TakeAfter waits for the images of a container, and takes a turn then. End makes it fail.
func (t *Turns) TakeAfter(ctx context.Context, id string, images func(context.Context) error) (done func(), err error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	f := &fetch{id, giveUp, make(chan struct{})}
	t.mu.Lock()
	t.fetches = append(t.fetches, f)
	t.mu.Unlock()
	done = func() {}
	if err = images(ctx); err == nil {
		done, err = t.Take(ctx)
	}
	t.mu.Lock()
	t.fetches = slices.DeleteFunc(t.fetches, func(o *fetch) bool { return o == f })
	t.mu.Unlock()
	close(f.done)
	if cause := context.Cause(ctx); err == nil && errdefs.IsAborted(cause) {
		err = cause
	}
	if err != nil {
		done()
		return func() {}, fmt.Errorf("create container %s: %w", id, err)
	}
	return done, nil
}

// End gives up the requests for a container whose images are being pulled. found says whether there are any.
func (t *Turns) End(ctx context.Context, id string) (found bool, err error) {
	t.mu.Lock()
	var list []*fetch
	for _, f := range t.fetches {
		if f.id == id {
			f.giveUp(fmt.Errorf("the container is removed before its image was there: %w", errdefs.ErrAborted))
			list = append(list, f)
		}
	}
	t.mu.Unlock()
	for _, f := range list {
		select {
		case <-f.done:
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("remove container %s: its image is still being pulled: %w", id, ctx.Err()))
		}
	}
	return len(list) > 0, err
}
