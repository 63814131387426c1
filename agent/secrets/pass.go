// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
)

// openWay makes the way for a coco-trust that is about to be started, and its other end, where the policy opens the
// workload API; else both are nil.
func (s *Store) openWay() (way *net.UnixConn, theirs *os.File, err error) {
	if !s.cfg.Setup.Workload {
		return nil, nil, nil
	}
	return fdpass.Pair("workload API", unix.SOCK_SEQPACKET)
}

func (s *Store) setWay(way *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.way = way
}

// Pass sends a connection to the workload API to coco-trust, with the name of its container. It starts coco-trust if it
// does not run, or has ended.
func (s *Store) Pass(ctx context.Context, name string, c *os.File) error {
	s.mu.Lock()
	way := s.way
	s.mu.Unlock()
	if way != nil && send(ctx, way, name, c) == nil {
		return nil
	}
	way, err := s.newWay(ctx, way)
	if err != nil {
		return err
	}
	return send(ctx, way, name, c)
}

func send(ctx context.Context, way *net.UnixConn, name string, c *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = way.SetWriteDeadline(time.Unix(1, 0)) })
	err := fdpass.Send(way, []byte(name), c)
	if !stop() {
		_ = way.Close() // its deadline has passed: it is of no use for others
	}
	if err != nil {
		return fmt.Errorf("pass a connection to coco-trust: %w", err)
	}
	return nil
}

// newWay returns a way other than the stale one, which belongs to a coco-trust that does not take anything.
func (s *Store) newWay(ctx context.Context, stale *net.UnixConn) (*net.UnixConn, error) {
	var h *helper
	select {
	case h = <-s.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { s.turn <- h }()
	if h != nil && h.way == stale {
		h.end()
		h = nil
	}
	if h != nil {
		return h.way, nil
	}
	var err error
	if h, err = s.start(ctx); err != nil {
		return nil, err
	}
	if h.way == nil {
		return nil, errors.New("coco-trust was started without the workload API")
	}
	return h.way, nil
}
