// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/policy"
)

// Bounds of connections.
const (
	maxConns   = 16 // of a container, over socket and port together
	maxUnknown = 4  // of strangers, until they have their 403
	maxHeader  = 8 << 10
	maxName    = 256

	headerTimeout = 10 * time.Second
	// answerTimeout is longer than a client of a broker may take for a call with all its attempts.
	answerTimeout = 11 * time.Minute
	idleTimeout   = 30 * time.Second
	// stopTimeout bounds the wait for requests that are being answered when their contexts are done.
	stopTimeout = 3 * time.Second
)

// counter counts connections or requests of each container, up to a bound.
type counter struct {
	most int

	mu sync.Mutex
	of map[string]int // guarded by mu
}

func (c *counter) take(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]int{}
	}
	if c.of[name] >= c.most {
		return false
	}
	c.of[name]++
	return true
}

func (c *counter) give(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[name]--
}

// conn is a connection of a container; of a stranger if of is nil.
type conn struct {
	net.Conn
	of   *policy.Container
	once sync.Once
	give func()
}

// Close gives the connection's place back.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.give)
	return err
}

// passed is the listener of the connections that the agent passes on.
type passed struct {
	api       *API
	from      *net.UnixConn
	conns     counter
	strangers counter
}

// Accept returns the next connection for which there is a place. The others are closed.
func (p *passed) Accept() (net.Conn, error) {
	for {
		raw, name, err := receive(p.from)
		if err != nil {
			return nil, err
		}
		c, count := p.api.containers[name], &p.conns
		if c == nil {
			name, count = "", &p.strangers
		}
		if count.take(name) {
			return &conn{Conn: raw, of: c, give: func() { count.give(name) }}, nil
		}
		_ = raw.Close()
	}
}

// receive takes a connection and the name of its container.
func receive(from *net.UnixConn) (net.Conn, string, error) {
	name := make([]byte, maxName)
	n, files, err := fdpass.Recv(from, name, 1)
	if err != nil {
		return nil, "", err
	}
	if len(files) != 1 {
		return nil, "", errors.New("a message of the agent without a connection")
	}
	c, err := net.FileConn(files[0])
	return c, string(name[:n]), errors.Join(err, files[0].Close())
}

// Close ends Accept.
func (p *passed) Close() error { return p.from.Close() }

// Addr is that of the way to the agent.
func (p *passed) Addr() net.Addr { return p.from.LocalAddr() }

type containerKey struct{}

// Serve answers requests on the connections that the agent passes on, until it closes the way, file, or ctx is done.
// All connections are closed then.
func (a *API) Serve(ctx context.Context, file *os.File) error {
	way, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("workload API: %w", err)
	}
	from, ok := way.(*net.UnixConn)
	if !ok {
		return errors.Join(errors.New("workload API: the way from the agent is no Unix socket"), way.Close())
	}
	a.way = from
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := a.server(ctx)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer done()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
	})
	defer func() {
		cancel()
		if !stop() {
			<-stopped
		}
	}()
	err = server.Serve(&passed{
		api: a, from: from, conns: counter{most: maxConns}, strangers: counter{most: maxUnknown},
	})
	if errors.Is(err, io.EOF) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("workload API: %w", err)
}

// server bounds size and time of a request and its answer.
func (a *API) server(ctx context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(a.cfg.Azure != nil) // for gRPC
	return &http.Server{
		Protocols: protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _ := r.Context().Value(containerKey{}).(*policy.Container)
			if !direct(r) {
				c = nil
			}
			a.serve(w, r, c)
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			own, ok := c.(*conn)
			if !ok {
				return ctx
			}
			return context.WithValue(ctx, containerKey{}, own.of)
		},
		ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
}

// direct says whether a request was meant for this API by the process that sent it. A request over the port has to name
// the loopback address, so that no page that a browser has from elsewhere reaches it, and no proxy may have passed it
// on.
func direct(r *http.Request) bool {
	if r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" {
		return false
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && a.Network() == "unix" {
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return host == "127.0.0.1" || host == "localhost"
}
