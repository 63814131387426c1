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
)

// Mux is the guest's end: it hands incoming connections to the listeners of their ports.
type Mux struct {
	*link

	lmu       sync.Mutex
	listeners map[uint32]*listener // guarded by lmu
	greetings int                  // guarded by lmu; streams that have not said their port
}

// NewMux takes over the channel. Nothing is accepted before Serve.
func NewMux(channel io.ReadWriteCloser) *Mux {
	return &Mux{link: newLink(channel), listeners: make(map[uint32]*listener)}
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
	err := m.receive(m.incoming)
	_ = m.Close()
	for _, end := range []error{ErrLost, io.EOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return fmt.Errorf("serve guest ports: %w", err)
}

// incoming is called for each stream that the host opens. Too many at once are refused.
func (m *Mux) incoming(id uint32) error {
	if id%2 != 1 || m.conn(id) != nil {
		return fmt.Errorf("the host opens stream %d: %w", id, ErrProtocol)
	}
	m.lmu.Lock()
	defer m.lmu.Unlock()
	if m.greetings >= maxGreetings {
		m.post(header{kind: typeWindow, flags: flagRST, stream: id})
		return nil
	}
	c := m.adopt(id, 0)
	c.greetPeer(flagACK)
	if m.spawn(func() { m.greet(c) }) {
		m.greetings++
	}
	return nil
}

// greet reads the first line of a stream and gives the stream to whom it asks for.
func (m *Mux) greet(c *Conn) {
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout)) // cannot fail
	line, err := readLine(c)
	if err == nil {
		c.port, err = parseLine(line, "CONNECT")
	}
	m.lmu.Lock()
	m.greetings--
	l := m.listeners[c.port]
	m.lmu.Unlock()
	switch {
	case err != nil:
		_ = c.Close()
	case c.port == controlPort:
		if m.answer(c, "OK") {
			m.setControl(c)
			m.readControl(c)
		}
	case l == nil:
		_ = c.Close()
	case !l.reserve():
		if m.answer(c, "FULL") {
			_ = c.Close()
		}
	case m.answer(c, "OK"):
		l.deliver(c)
	default:
		l.giveUp()
	}
}

// answer ends the handshake, or the stream.
func (m *Mux) answer(c *Conn, word string) bool {
	_, err := c.Write(formatLine(word, c.port))
	_ = c.SetDeadline(time.Time{}) // cannot fail
	if err != nil {
		_ = c.Close()
	}
	return err == nil
}

// listener is one port.
type listener struct {
	mux   *Mux
	port  uint32
	queue chan *Conn

	mu     sync.Mutex
	closed bool // guarded by mu
	taken  int  // guarded by mu; places in the queue
	done   chan struct{}
}

// reserve takes a place in the queue.
func (l *listener) reserve() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taken == cap(l.queue) {
		return false
	}
	l.taken++
	return true
}

func (l *listener) giveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken--
}

// deliver puts a connection in its place.
func (l *listener) deliver(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close() // cannot fail
		return
	}
	l.queue <- c
}

// Accept returns the next connection to the port.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, fmt.Errorf("accept on guest port %d: %w", l.port, net.ErrClosed)
	case c := <-l.queue:
		l.giveUp()
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
