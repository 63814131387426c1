// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// Mux is the guest's end: it hands incoming connections to the listeners of their ports.
type Mux struct {
	*link

	lmu       sync.Mutex
	listeners map[uint32]*listener // guarded by lmu
}

// NewMux takes over the channel. Nothing is accepted before Serve.
func NewMux(channel io.ReadWriteCloser) *Mux {
	return &Mux{link: newLink(channel, yamux.Server), listeners: make(map[uint32]*listener)}
}

// Close ends the channel and everything on it; Serve returns and listeners end.
func (m *Mux) Close() error {
	err := m.close()
	m.lmu.Lock()
	all := m.listeners
	m.listeners = make(map[uint32]*listener)
	m.lmu.Unlock()
	for _, l := range all {
		_ = l.Close() // cannot fail
	}
	return err
}

// Listen claims a port, which must be free and not 0.
func (m *Mux) Listen(port uint32) (net.Listener, error) {
	if port == controlPort {
		return nil, fmt.Errorf("listen on guest port %d: reserved", port)
	}
	m.lmu.Lock()
	defer m.lmu.Unlock()
	if m.listeners[port] != nil {
		return nil, fmt.Errorf("listen on guest port %d: in use", port)
	}
	l := &listener{mux: m, port: port, queue: make(chan *Conn, backlog), done: make(chan struct{})}
	m.listeners[port] = l
	return l, nil
}

// Serve accepts connections until the channel ends. It returns nil when we or the peer closed it,
// else what broke it. The Mux is closed when Serve returns.
func (m *Mux) Serve() error {
	var err error
	for {
		var s *yamux.Stream
		if s, err = m.session.AcceptStream(); err != nil {
			break
		}
		m.spawn(func() { m.greet(s) })
	}
	_ = m.Close()
	for _, end := range []error{yamux.ErrSessionShutdown, io.EOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return fmt.Errorf("serve guest ports: %w", err)
}

// greet reads the first line of a stream and gives the stream to whom it asks for.
func (m *Mux) greet(s *yamux.Stream) {
	_ = s.SetDeadline(time.Now().Add(handshakeTimeout)) // cannot fail
	line, err := readLine(s)
	var port uint32
	if err == nil {
		port, err = parseLine(line, "CONNECT")
	}
	if err != nil {
		_ = s.Close()
		return
	}
	if port == controlPort {
		m.greetControl(s)
		return
	}
	m.lmu.Lock()
	l := m.listeners[port]
	m.lmu.Unlock()
	c := m.adopt(s, port)
	if l == nil {
		_ = c.Close()
		return
	}
	if _, err := c.Write(formatLine("OK", port)); err != nil {
		_ = c.Close()
		return
	}
	_ = s.SetDeadline(time.Time{}) // cannot fail
	l.deliver(c)
}

func (m *Mux) greetControl(s *yamux.Stream) {
	_ = s.SetDeadline(time.Time{}) // cannot fail
	c := &Conn{stream: s, link: m.link, port: controlPort}
	if _, err := c.Write(formatLine("OK", controlPort)); err != nil {
		return // the channel has ended
	}
	m.setControl(c)
	m.readControl(c)
}

// listener is one port.
type listener struct {
	mux   *Mux
	port  uint32
	queue chan *Conn

	mu     sync.Mutex
	closed bool // guarded by mu
	done   chan struct{}
}

func (l *listener) deliver(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		select {
		case l.queue <- c:
			return
		default: // nobody accepts: the peer learns it by the end of the stream
		}
	}
	l.mux.spawn(func() { _ = c.Close() }) // sends on the channel, so not under the lock
}

// Accept returns the next connection to the port.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, fmt.Errorf("accept on guest port %d: %w", l.port, net.ErrClosed)
	case c := <-l.queue:
		return c, nil
	}
}

// Close frees the port and closes connections that nobody accepted.
func (l *listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.done)
	l.mu.Unlock()

	l.mux.lmu.Lock()
	if l.mux.listeners[l.port] == l {
		delete(l.mux.listeners, l.port)
	}
	l.mux.lmu.Unlock()
	for {
		select {
		case c := <-l.queue:
			_ = c.Close() // cannot fail
		default:
			return nil
		}
	}
}

// Addr is the port.
func (l *listener) Addr() net.Addr { return Addr(l.port) }
