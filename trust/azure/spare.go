// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"context"
	"crypto/rsa"
	"sync"

	"github.com/coco-shim/coco/azure/skr"
)

// spare makes wrapping keys ahead, so that one is ready when a request comes: making it takes longer than all the rest
// on this side. Each key is for one request.
type spare struct {
	ready chan made
	stop  chan struct{}
	wg    sync.WaitGroup
}

type made struct {
	key *rsa.PrivateKey
	err error
}

func newSpare() *spare {
	s := &spare{ready: make(chan made), stop: make(chan struct{})}
	s.wg.Go(func() {
		for {
			k, err := skr.NewKey(context.Background())
			select {
			case s.ready <- made{k, err}:
			case <-s.stop:
				if err == nil {
					skr.Wipe(k)
				}
				return
			}
		}
	})
	return s
}

// take returns a key that nobody else gets.
func (s *spare) take(ctx context.Context) (*rsa.PrivateKey, error) {
	select {
	case m := <-s.ready:
		return m.key, m.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *spare) close() {
	close(s.stop)
	s.wg.Wait()
}
