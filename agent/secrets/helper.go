// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"io"
	"net"

	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/trust/wire"
)

// helper is a running coco-trust.
type helper struct {
	*cotrust.Program
	way *net.UnixConn // nil without the workload API
}

// start starts coco-trust.
func (s *Store) start(ctx context.Context) (*helper, error) {
	way, theirs, err := s.openWay()
	if err != nil {
		return nil, err
	}
	if theirs != nil {
		defer theirs.Close()
	}
	p, err := cotrust.Start(ctx, cotrust.Config{Open: s.cfg.Open, Spawn: s.cfg.Spawn}, s.cfg.Setup, theirs)
	if err != nil {
		if way != nil {
			_ = way.Close()
		}
		return nil, err
	}
	var hello wire.Hello
	if err := p.Talk(ctx, func(c io.ReadWriter) error { return wire.Read(c, &hello) }); err != nil {
		p.End()
		if way != nil {
			_ = way.Close()
		}
		return nil, err
	}
	for _, what := range hello.Insecure {
		s.cfg.Log.Warn("insecure: " + what)
	}
	s.setWay(way)
	if way != nil {
		s.wg.Go(func() { s.serveRenewals(way) })
	}
	return &helper{p, way}, nil
}

// ask sends a request and waits for its answer.
func (h *helper) ask(ctx context.Context, req wire.Request) (a wire.Answer, err error) {
	err = h.Talk(ctx, func(c io.ReadWriter) error {
		if err := wire.Write(c, req); err != nil {
			return err
		}
		return wire.Read(c, &a)
	})
	return a, err
}

// end ends coco-trust.
func (h *helper) end() {
	if h.way != nil {
		_ = h.way.Close() // a connection that is being passed fails, and is passed to the next coco-trust
	}
	h.End()
}
