// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package forward connects the host with services that listen on the guest's loopback address, for
// port-forward. The host opens a connection to the port that this package serves and writes one line,
// the number of a TCP port. The answer is the line "ok" or an error (package gate). After that the
// connection belongs to the service.
package forward

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/coco-shim/coco/agent/gate"
)

// dialTimeout: a loopback connection does not take long.
const dialTimeout = 10 * time.Second

// greeting names a TCP port.
var greeting = gate.Greeting{Max: math.MaxUint16}

// Server forwards connections until it is closed.
type Server struct {
	*gate.Port
	admit func(port uint32) error
}

// New makes a Server. admit decides about each connection before the guest dials.
func New(admit func(port uint32) error) *Server {
	s := &Server{admit: admit}
	s.Port = gate.NewPort(s.forward)
	return s
}

func (s *Server) forward(life context.Context, c net.Conn) {
	var service net.Conn
	err := greeting.Admit(c, func(port uint32) (err error) {
		if err := s.admit(port); err != nil {
			return err
		}
		if service, err = dial(life, port); err != nil {
			err = fmt.Errorf("port %d: %w", port, err)
		}
		return err
	})
	if service == nil {
		return
	}
	defer service.Close()
	defer context.AfterFunc(life, func() { _ = service.Close() })()
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { half(service, c) })
	wg.Go(func() { half(c, service) })
	wg.Wait()
}

// dial tries the two addresses that "localhost" stands for, in turn, as runtimes do.
func dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	p := strconv.FormatUint(uint64(port), 10)
	c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", p))
	if err == nil {
		return c, nil
	}
	c, err6 := d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", p))
	if err6 == nil {
		return c, nil
	}
	return nil, err
}

// half copies one direction and passes its end on. When that fails, both connections end.
func half(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if w, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = w.CloseWrite() // it may be closed already
		return
	}
	_, _ = to.Close(), from.Close()
}
