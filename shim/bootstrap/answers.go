// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/binary"
	"net"
	"sync"

	"github.com/containerd/ttrpc"
)

// answers knows whether every call was answered. A ttrpc server that is shut down closes connections that
// it holds for idle, and it does so to one whose only call came while nothing else was under way; the
// answer to the call that ends the shim would be lost.
type answers struct {
	mu      sync.Mutex
	running int           // guarded by mu; calls whose method has not returned
	owed    int           // guarded by mu; answers that were not written yet
	changed chan struct{} // guarded by mu; closed and replaced with each change
}

func newAnswers() *answers { return &answers{changed: make(chan struct{})} }

func (a *answers) add(running, owed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running += running
	a.owed = max(a.owed+owed, 0) // what was no call, ttrpc answers too
	close(a.changed)
	a.changed = make(chan struct{})
}

// intercept counts a call.
func (a *answers) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	a.add(1, 0)
	defer a.add(-1, 1)
	return method(ctx, unmarshal)
}

// wait waits until all calls are answered.
func (a *answers) wait(ctx context.Context) {
	for {
		a.mu.Lock()
		done, changed := a.running == 0 && a.owed == 0, a.changed
		a.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// listener counts its clients, and the answers on their connections.
type listener struct {
	net.Listener
	answers *answers
	clients *clients
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.clients.come()
	return &answered{Conn: c, answers: l.answers, clients: l.clients}, nil
}

// answered is a connection whose frames are watched: 10 bytes of header (stream, length, type, flags) and
// then the payload (PROTOCOL.md of github.com/containerd/ttrpc). The server writes from one goroutine.
type answered struct {
	net.Conn
	answers  *answers
	clients  *clients
	closed   sync.Once
	header   []byte
	left     uint32 // of the payload
	response bool
}

const (
	frameHeader   = 10
	frameResponse = 2 // the type of a message
)

// Close implements net.Conn.
func (c *answered) Close() error {
	err := c.Conn.Close()
	c.closed.Do(c.clients.leave)
	return err
}

// Write implements net.Conn.
func (c *answered) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	for p = p[:n]; len(p) > 0; {
		if len(c.header) < frameHeader {
			k := min(frameHeader-len(c.header), len(p))
			c.header, p = append(c.header, p[:k]...), p[k:]
			if len(c.header) < frameHeader {
				break
			}
			c.left, c.response = binary.BigEndian.Uint32(c.header[4:]), c.header[8] == frameResponse
		}
		k := min(uint64(c.left), uint64(len(p)))
		p, c.left = p[k:], c.left-uint32(k) //nolint:gosec // at most left
		if c.left == 0 {
			c.header = c.header[:0]
			if c.response {
				c.answers.add(0, -1)
			}
		}
	}
	return n, err
}
