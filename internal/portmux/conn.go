// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Addr is the address of one end: a port of the guest.
type Addr uint32

// Network is "portmux".
func (Addr) Network() string { return "portmux" }

// String is the port in decimal.
func (a Addr) String() string { return strconv.FormatUint(uint64(a), 10) }

// Conn is one connection. It implements net.Conn, CloseWrite and io.WriterTo.
type Conn struct {
	link *link
	id   uint32
	port uint32

	reading sync.Mutex    // one reader at a time
	arrived chan struct{} // capacity 1: there is something to read
	writing sync.Mutex    // one writer at a time
	widened chan struct{} // capacity 1: the window has grown

	closed   chan struct{} // closed by Close
	peerGone chan struct{} // closed when the peer has closed both directions
	rdead    deadline
	wdead    deadline

	mu      sync.Mutex
	in      inbox  // guarded by mu
	window  uint32 // guarded by mu; bytes that this side may still send
	acked   bool   // guarded by mu; the peer has accepted the stream
	sawFIN  bool   // guarded by mu; the peer's direction has ended
	finSent bool   // guarded by mu; our direction has ended
	deaf    bool   // guarded by mu; received bytes are dropped
	lingers bool   // guarded by mu; it was closed before the peer's direction had ended
}

var (
	_ net.Conn    = (*Conn)(nil)
	_ io.WriterTo = (*Conn)(nil)
)

func newConn(l *link, id, port uint32) *Conn {
	return &Conn{
		link: l, id: id, port: port, in: newInbox(l.maxWindow()), window: initialWindow,
		arrived: make(chan struct{}, 1), widened: make(chan struct{}, 1),
		closed: make(chan struct{}), peerGone: make(chan struct{}),
	}
}

// greetPeer opens the stream, or accepts it. The peer knows our first window: it is the protocol's.
func (c *Conn) greetPeer(flag uint16) {
	c.link.post(header{kind: typeWindow, flags: flag, stream: c.id})
}

// Read reads what the peer wrote. After the peer's CloseWrite or Close, and all data before it,
// it returns io.EOF; when the channel has ended it returns ErrLost.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	b, err := c.peek()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	c.consume(n)
	return n, nil
}

// WriteTo writes everything to w that arrives until the peer's end.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	var total int64
	for {
		b, err := c.peek()
		if err == io.EOF { //nolint:errorlint // peek's own
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(b)
		total += int64(n)
		c.consume(n)
		if err != nil {
			return total, err
		}
	}
}

// peek waits for received bytes.
func (c *Conn) peek() ([]byte, error) {
	for {
		over := c.rdead.wait()
		switch {
		case isClosed(c.closed):
			return nil, net.ErrClosed
		case isClosed(over):
			return nil, os.ErrDeadlineExceeded
		}
		lost := isClosed(c.link.done) // checked first: bytes from before the end are still read
		c.mu.Lock()
		b, end := c.in.head(), c.sawFIN
		c.mu.Unlock()
		switch {
		case len(b) > 0:
			return b, nil
		case end:
			return nil, io.EOF
		case lost:
			return nil, c.link.lost()
		}
		select {
		case <-c.arrived:
		case <-c.closed:
		case <-over:
		case <-c.link.done:
		}
	}
}

// consume removes n bytes that peek returned, and lets the peer send more when it is time.
func (c *Conn) consume(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.take(n)
	if c.sawFIN {
		return
	}
	if more := c.in.grant(); more > 0 {
		c.link.post(header{kind: typeWindow, stream: c.id, length: more})
	}
}

// receive takes the body of a frame. It drops bytes of a stream without a reader.
func (c *Conn) receive(r *bufio.Reader, length uint32) error {
	c.mu.Lock()
	if c.sawFIN || !c.in.accept(length) {
		c.mu.Unlock()
		return fmt.Errorf("stream %d: %d bytes more than its window or after its end: %w", c.id, length, ErrProtocol)
	}
	c.mu.Unlock()
	for left := int(length); left > 0; {
		c.mu.Lock()
		if c.deaf || isClosed(c.closed) {
			c.mu.Unlock()
			_, err := io.CopyN(io.Discard, r, int64(left))
			return err
		}
		room := c.in.room(left)
		c.mu.Unlock()
		n, err := r.Read(room)
		c.mu.Lock()
		c.in.commit(n)
		c.mu.Unlock()
		wake(c.arrived)
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// widen adds to what we may send.
func (c *Conn) widen(by uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if by > 1<<30 || c.window > 1<<30 {
		return fmt.Errorf("stream %d: window of more than 1 GiB: %w", c.id, ErrProtocol)
	}
	c.window += by
	wake(c.widened)
	return nil
}

// acknowledged is called when the peer has accepted the stream. It returns whether that is new.
func (c *Conn) acknowledged() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.acked
	c.acked = true
	return first
}

// peerEnded is called when the peer has ended its direction, or with a reset both. It says whether that is new.
func (c *Conn) peerEnded(reset bool) bool {
	c.mu.Lock()
	news := !c.sawFIN
	c.sawFIN = true
	over, lingered := c.finSent, c.lingers
	c.lingers = false
	c.mu.Unlock()
	if lingered {
		c.link.linger(-1)
	}
	wake(c.arrived)
	if reset {
		news = c.reset() || news
		over = true
	}
	if over {
		c.link.forget(c.id)
	}
	return news
}

// DropReads is for a connection that is only written to: it drops received bytes and does not renew the peer's window.
func (c *Conn) DropReads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deaf = true
	c.in.drop()
}

// Write sends p in frames of bounded size, so that connections take turns on the channel.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	total := 0
	for {
		n, err := c.reserve(min(len(p), maxFrame))
		if err != nil {
			return total, err
		}
		if n > 0 {
			if err := c.sendData(p[:n]); err != nil {
				return total, err
			}
		}
		total += n
		if p = p[n:]; len(p) == 0 {
			return total, nil
		}
	}
}

// reserve takes up to n bytes of the window, and waits while it is empty.
func (c *Conn) reserve(n int) (int, error) {
	for {
		over := c.wdead.wait()
		if err := c.writeError(over); err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, nil
		}
		c.mu.Lock()
		n := min(n, int(c.window))
		c.window -= uint32(n) //nolint:gosec // at most a frame
		c.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-c.widened:
		case <-c.closed:
		case <-c.peerGone:
		case <-over:
		case <-c.link.done:
		}
	}
}

// giveBack returns what was reserved and not used.
func (c *Conn) giveBack(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window += uint32(n) //nolint:gosec // at most a frame
}

func (c *Conn) writeError(over <-chan struct{}) error {
	c.mu.Lock()
	finSent := c.finSent // asked before peerGone: a reset sets that one first
	c.mu.Unlock()
	switch {
	case isClosed(c.closed):
		return net.ErrClosed
	case isClosed(c.link.done):
		return c.link.lost()
	case isClosed(c.peerGone):
		return syscall.EPIPE
	case isClosed(over):
		return os.ErrDeadlineExceeded
	case finSent:
		return net.ErrClosed
	}
	return nil
}

// CloseWrite ends our direction: the peer reads io.EOF after the last byte. Reading goes on.
func (c *Conn) CloseWrite() error {
	if isClosed(c.closed) {
		return net.ErrClosed
	}
	c.sendFIN()
	return nil
}

// sendFIN ends our direction. When it returns the end is queued, also when another goroutine was first.
func (c *Conn) sendFIN() {
	c.mu.Lock()
	if !c.finSent {
		c.finSent = true
		c.link.post(header{kind: typeWindow, flags: flagFIN, stream: c.id})
	}
	over := c.sawFIN
	c.mu.Unlock()
	if over {
		c.link.forget(c.id)
	}
}

// Close ends both directions. Written data still reaches the peer. Later data of the peer is
// dropped, and its writes fail. It may be called more than once, and does not block.
func (c *Conn) Close() error {
	c.mu.Lock()
	if isClosed(c.closed) {
		c.mu.Unlock()
		return nil
	}
	close(c.closed)
	c.in.drop()
	sawFIN := c.sawFIN
	c.lingers = !sawFIN
	c.mu.Unlock()
	c.rdead.end()
	c.wdead.end()
	if !sawFIN {
		c.link.linger(1)
	}
	c.sendFIN()
	if !sawFIN && !isClosed(c.peerGone) {
		c.link.sendReset(c.id)
	}
	return nil
}

// reset is called when the peer has closed both directions: nobody reads what we write. It says whether that is new.
func (c *Conn) reset() bool {
	c.mu.Lock()
	first := !isClosed(c.peerGone)
	if first {
		close(c.peerGone)
	}
	c.mu.Unlock()
	if first {
		c.sendFIN()
	}
	return first
}

// LocalAddr is the port.
func (c *Conn) LocalAddr() net.Addr { return Addr(c.port) }

// RemoteAddr is the port.
func (c *Conn) RemoteAddr() net.Addr { return Addr(c.port) }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	c.rdead.set(t)
	c.wdead.set(t)
	return nil
}

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.rdead.set(t)
	return nil
}

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.wdead.set(t)
	return nil
}
