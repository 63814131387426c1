// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package forward connects the host with services that listen on the guest's loopback address, for
// port-forward. The host opens a connection to the port that this package serves and writes one line,
// the number of a TCP port; the answer is the line "ok", or what went wrong. After that the
// connection is the service's.
package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// limits: the first line comes at once, and a loopback connection does not take long.
const (
	lineTimeout = 10 * time.Second
	dialTimeout = 10 * time.Second
	maxLine     = 16
)

// Server forwards connections until it is closed.
type Server struct {
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
}

// New makes a Server.
func New() *Server {
	life, end := context.WithCancel(context.Background())
	return &Server{life: life, end: end}
}

// Close ends all connections and waits for their goroutines.
func (s *Server) Close() {
	s.end()
	s.wg.Wait()
}

// Serve serves a listener until it is closed.
func (s *Server) Serve(l net.Listener) error {
	defer context.AfterFunc(s.life, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if s.life.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		s.wg.Go(func() {
			defer c.Close() //nolint:errcheck // it is over
			defer context.AfterFunc(s.life, func() { _ = c.Close() })()
			s.forward(c)
		})
	}
}

func (s *Server) forward(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(lineTimeout))
	port, err := readPort(c)
	if err != nil {
		return // who does not speak the protocol gets no answer
	}
	_ = c.SetReadDeadline(time.Time{})
	service, err := dial(s.life, port)
	if err != nil {
		_, _ = fmt.Fprintf(c, "port %d: %v\n", port, err)
		return
	}
	defer service.Close() //nolint:errcheck // it is over
	defer context.AfterFunc(s.life, func() { _ = service.Close() })()
	if _, err := io.WriteString(c, "ok\n"); err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { half(service, c) })
	wg.Go(func() { half(c, service) })
	wg.Wait()
}

// dial tries the two addresses that "localhost" stands for, in turn, as runtimes do.
func dial(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	p := strconv.Itoa(int(port))
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

// readPort reads the first line, byte by byte: what follows it is the service's.
func readPort(r io.Reader) (uint16, error) {
	br := bufio.NewReaderSize(oneByte{r}, maxLine)
	line, err := br.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(string(line), "\n"), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("no port: %q", line)
	}
	return uint16(n), nil
}

// oneByte keeps a buffered reader from taking more than it was asked for.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }
