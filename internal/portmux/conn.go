// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// Addr is the address of one end: a port of the guest.
type Addr uint32

// Network is "portmux".
func (Addr) Network() string { return "portmux" }

// String is the port in decimal.
func (a Addr) String() string { return strconv.FormatUint(uint64(a), 10) }

// Conn is one connection. It implements net.Conn and CloseWrite.
type Conn struct {
	stream *yamux.Stream
	link   *link
	port   uint32

	sawEOF   atomic.Bool // the peer's direction has ended
	peerGone atomic.Bool // the peer has closed both directions
	closed   atomic.Bool
	finSent  atomic.Bool // our direction has ended
}

var _ net.Conn = (*Conn)(nil)

// Read reads what the peer wrote. After the peer's CloseWrite or Close, and all data before it,
// it returns io.EOF; when the channel has ended it returns ErrLost.
func (c *Conn) Read(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.stream.Read(p)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) && !c.closed.Load() && !c.link.session.IsClosed() {
		c.sawEOF.Store(true)
		return n, io.EOF
	}
	return n, c.mapError(err)
}

// Write sends p in frames of bounded size, so that connections take turns on the channel.
func (c *Conn) Write(p []byte) (int, error) {
	total := 0
	for {
		if err := c.writeError(); err != nil {
			return total, err
		}
		part := p[:min(len(p), maxFrame)]
		n, err := c.stream.Write(part)
		total += n
		if err != nil {
			return total, c.mapError(err)
		}
		if p = p[len(part):]; len(p) == 0 {
			return total, nil
		}
	}
}

func (c *Conn) writeError() error {
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case c.peerGone.Load():
		return syscall.EPIPE
	}
	return nil
}

func (c *Conn) mapError(err error) error {
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case c.link.session.IsClosed():
		return ErrLost
	case c.peerGone.Load():
		return syscall.EPIPE
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrStreamClosed):
		return net.ErrClosed
	}
	return err
}

// CloseWrite ends our direction: the peer reads io.EOF after the last byte. Reading goes on.
func (c *Conn) CloseWrite() error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	c.sendFIN()
	return nil
}

func (c *Conn) sendFIN() {
	if !c.finSent.Swap(true) {
		_ = c.stream.Close() // half-closes in yamux; it only fails with the channel
	}
}

// Close ends both directions. Data that was written reaches the peer; what the peer still
// sends is dropped, and its writes fail. It may be called more than once.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.sendFIN()
	c.link.forget(c)
	past := time.Unix(1, 0)
	_ = c.stream.SetDeadline(past) // wakes readers and writers; cannot fail
	if !c.sawEOF.Load() && !c.peerGone.Load() {
		c.link.sendReset(c.stream.StreamID())
	}
	return nil
}

// reset is called when the peer has closed both directions: nobody reads what we write.
func (c *Conn) reset() {
	if c.peerGone.Swap(true) {
		return
	}
	_ = c.stream.SetWriteDeadline(time.Unix(1, 0)) // wakes a writer; cannot fail
	c.sendFIN()
}

// LocalAddr is the port.
func (c *Conn) LocalAddr() net.Addr { return Addr(c.port) }

// RemoteAddr is the port.
func (c *Conn) RemoteAddr() net.Addr { return Addr(c.port) }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.peerGone.Load() {
		return nil // writes fail anyway, and a writer that is being woken must stay so
	}
	return c.stream.SetWriteDeadline(t)
}
