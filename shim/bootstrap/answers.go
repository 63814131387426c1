// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/binary"
	"math"
	"net"
	"sync"
)

// answers knows whether every call was answered. A ttrpc server that is shut down closes connections that
// it holds for idle, and it does so to one whose only call came while nothing else was under way; the
// answer to the call that ends the shim would be lost.
type answers struct {
	mu      sync.Mutex
	owed    int           // guarded by mu; calls that came and whose answers were not written yet
	changed chan struct{} // guarded by mu; closed and replaced with each change
}

func newAnswers() *answers { return &answers{changed: make(chan struct{})} }

// wait waits until all calls are answered.
func (a *answers) wait(ctx context.Context) {
	for {
		a.mu.Lock()
		done, changed := a.owed == 0, a.changed
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

// answered is a connection whose frames are watched. The server reads and writes from one goroutine each.
type answered struct {
	net.Conn
	answers *answers
	clients *clients
	once    sync.Once
	in, out frames

	owed int // guarded by answers.mu
}

// add counts calls, or answers with a negative number, of which there are no more than calls.
func (c *answered) add(n int) {
	a := c.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	if n = max(n, -c.owed); n == 0 {
		return
	}
	c.owed += n
	a.owed += n
	close(a.changed)
	a.changed = make(chan struct{})
}

// Read implements net.Conn.
func (c *answered) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.add(c.in.count(p[:n], frameRequest))
	return n, err
}

// Write implements net.Conn.
func (c *answered) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.add(-c.out.count(p[:n], frameResponse))
	return n, err
}

// Close implements net.Conn.
func (c *answered) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.add(math.MinInt) // a closed connection is owed no responses
		c.clients.leave()
	})
	return err
}

// frames follows the frames in one direction of a connection: 10 bytes of header (length of the payload, stream, type,
// flags), then the payload; PROTOCOL.md of github.com/containerd/ttrpc.
type frames struct {
	header []byte
	left   uint32 // of the payload
}

const (
	frameHeader   = 10
	frameRequest  = 1 // types of a message
	frameResponse = 2
)

// count takes the next bytes and returns how many frames of a kind end in them.
func (f *frames) count(p []byte, kind byte) (n int) {
	for len(p) > 0 {
		if len(f.header) < frameHeader {
			k := min(frameHeader-len(f.header), len(p))
			f.header, p = append(f.header, p[:k]...), p[k:]
			if len(f.header) < frameHeader {
				return n
			}
			f.left = binary.BigEndian.Uint32(f.header)
		}
		k := min(uint64(f.left), uint64(len(p)))
		p, f.left = p[k:], f.left-uint32(k) //nolint:gosec // at most left
		if f.left == 0 {
			if f.header[8] == kind {
				n++
			}
			f.header = f.header[:0]
		}
	}
	return n
}
