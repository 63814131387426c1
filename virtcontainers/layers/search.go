// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"context"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/image/layer"
)

// Opener finds or builds the layers of a root file system; a Cache is one.
type Opener interface {
	Open(ctx context.Context, req Request) ([]*layer.Layer, error)
}

// Search is a search for layers that runs beside the boot of the VM.
type Search struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when layers and err are set
	layers []*layer.Layer
	err    error
}

// Begin starts the search in a goroutine that spawn starts. It returns nil when the pod has ended.
func Begin(life context.Context, spawn func(func(context.Context)) bool, from Opener, req Request) *Search {
	ctx, cancel := context.WithCancel(life)
	s := &Search{cancel: cancel, done: make(chan struct{})}
	if !spawn(func(context.Context) {
		defer close(s.done)
		s.layers, s.err = from.Open(ctx, req)
	}) {
		cancel()
		return nil
	}
	return s
}

// Done is closed when the search has ended.
func (s *Search) Done() <-chan struct{} { return s.done }

// Take returns the layers once they are there. They are the caller's then. On an error it gives the search up.
func (s *Search) Take(ctx context.Context) ([]*layer.Layer, error) {
	var err error
	select {
	case <-s.done:
		err = s.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("root file system: %w", err), s.Close())
	}
	s.cancel()
	return s.layers, nil
}

// Ready returns the layers when they are there already.
func (s *Search) Ready() ([]*layer.Layer, bool) {
	select {
	case <-s.done:
		return s.layers, s.err == nil
	default:
		return nil, false
	}
}

// Failed returns the error of a search that has failed already.
func (s *Search) Failed() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Close gives the layers up, after a search that goes on was ended.
func (s *Search) Close() error {
	s.cancel()
	<-s.done
	layers := s.layers
	s.layers = nil
	return Close(layers)
}
