// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/coco-shim/coco/internal/lock"
)

// link has the parts that both ends share: the channel, the streams on it, and the control stream.
type link struct {
	channel io.ReadWriteCloser
	tasks   sync.WaitGroup // goroutines that end with the channel
	done    chan struct{}  // closed when the channel has ended
	flush   chan struct{}  // capacity 1: frames may be queued
	kick    chan struct{}  // capacity 1: pending or control has changed

	turn    lock.Mutex   // held by the writer to the channel
	out     []byte       // held by turn: the buffer of one write
	private *privatePipe // held by turn: the pipe for splices

	mu      sync.Mutex
	closing bool             // guarded by mu: no more tasks
	err     error            // guarded by mu: why the channel ended
	conns   map[uint32]*Conn // guarded by mu; streams that have not ended both ways
	frames  []byte           // guarded by mu; frames without a body, to send
	pong    *header          // guarded by mu; the answer to the newest ping
	pending []byte           // guarded by mu; control lines to send
	control io.Writer        // guarded by mu; nil until the control stream is up

	strict    bool      // the peer opens no streams; set before anything is received
	idle      float64   // guarded by mu; useless frames, less those that time has excused
	idleAt    time.Time // guarded by mu; when idle was counted
	lingering int       // guarded by mu; streams that we have closed and the peer has not ended
}

func newLink(channel io.ReadWriteCloser) *link {
	l := &link{
		channel: channel, done: make(chan struct{}), conns: make(map[uint32]*Conn),
		flush: make(chan struct{}, 1), kick: make(chan struct{}, 1), turn: lock.New(),
	}
	l.spawn(l.sendControl)
	l.spawn(l.sendFrames)
	return l
}

// close ends the channel and waits for every task.
func (l *link) close() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	err := l.fail(ErrLost)
	l.tasks.Wait()
	l.turn <- struct{}{} // writers have been woken by now, so this does not wait long
	l.private.close()
	l.private = nil
	l.turn.Unlock()
	return err
}

// fail ends the channel because of err; the first reason counts.
func (l *link) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil
	}
	l.err = err
	close(l.done)
	return l.channel.Close()
}

// spawn starts a goroutine that close waits for, unless close was called.
func (l *link) spawn(task func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return false
	}
	l.tasks.Go(task)
	return true
}

// adopt makes the Conn of a new stream.
func (l *link) adopt(id, port uint32) *Conn {
	c := newConn(l, id, port)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[id] = c
	return c
}

// maxWindow returns the largest window of this side's streams.
func (l *link) maxWindow() uint32 {
	if l.strict {
		return hostWindow
	}
	return guestWindow
}

// forget removes a stream that has ended both ways.
func (l *link) forget(id uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, id)
}

func (l *link) conn(id uint32) *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conns[id]
}

// receive reads frames until the channel ends, and returns why. newStream is called for a stream that
// the peer opens. It never waits for anything but the channel.
func (l *link) receive(newStream func(id uint32) error) error {
	err := l.readFrames(newStream)
	l.mu.Lock()
	if l.err != nil && !errors.Is(err, ErrProtocol) {
		err = l.err // we closed it
	}
	l.mu.Unlock()
	_ = l.fail(err) // the channel has failed already
	return err
}

func (l *link) readFrames(newStream func(id uint32) error) error {
	r := bufio.NewReaderSize(l.channel, 4096)
	var buf [headerSize]byte
	for {
		if _, err := io.ReadFull(r, buf[:]); err != nil {
			return err
		}
		h, err := parseHeader(&buf)
		if err != nil {
			return err
		}
		switch h.kind {
		case typePing:
			l.ping(h)
			if err := l.useless(); err != nil {
				return err
			}
		case typeGoAway:
			if h.length != 0 {
				return fmt.Errorf("the peer went away with reason %d: %w", h.length, ErrProtocol)
			}
			if err := l.useless(); err != nil {
				return err
			}
		default:
			if h.flags&flagSYN != 0 {
				if err := newStream(h.stream); err != nil {
					return err
				}
			}
			if err := l.obey(r, h); err != nil {
				return err
			}
		}
	}
}

// obey handles a frame of a stream. One that is not known has ended: the peer may have sent more
// before it knew, but not much.
func (l *link) obey(r *bufio.Reader, h header) error {
	c, useful := l.conn(h.stream), h.flags&flagSYN != 0
	switch {
	case h.kind == typeData && h.length > 0 && c == nil:
		err := l.stray(h)
		if err == nil {
			_, err = io.CopyN(io.Discard, r, int64(h.length))
		}
		if err != nil {
			return err
		}
	case h.kind == typeData && h.length > 0:
		if err := c.receive(r, h.length); err != nil {
			return err
		}
		useful = true
	case h.kind == typeWindow && h.length > 0 && c != nil:
		if err := c.widen(h.length); err != nil {
			return err
		}
		useful = useful || h.length >= minGrant
	}
	if c != nil && h.flags&flagACK != 0 && c.acknowledged() {
		useful = true
	}
	if c != nil && h.flags&(flagFIN|flagRST) != 0 && c.peerEnded(h.flags&flagRST != 0) {
		useful = true
	}
	if useful {
		return nil
	}
	return l.useless()
}

// ping answers with the newest number only, so that a peer that does not read costs no memory.
func (l *link) ping(h header) {
	if h.flags&flagSYN == 0 {
		return // an answer; we never ask
	}
	h.flags = flagACK
	l.mu.Lock()
	l.pong = &h
	l.mu.Unlock()
	wake(l.flush)
}

// post queues a frame without a body. It does not block; a peer that makes us answer without ever
// reading loses the channel.
func (l *link) post(h header) {
	l.mu.Lock()
	l.frames = h.append(l.frames)
	tooMany := len(l.frames) > maxQueued
	l.mu.Unlock()
	if tooMany {
		_ = l.fail(fmt.Errorf("the peer does not read: %w", ErrProtocol))
	}
	wake(l.flush)
}

// queued moves the queued frames to the end of b.
func (l *link) queued(b []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	b = append(b, l.frames...)
	l.frames = l.frames[:0]
	if l.pong != nil {
		b = l.pong.append(b)
		l.pong = nil
	}
	return b
}

// sendFrames writes queued frames that no writer has taken along.
func (l *link) sendFrames() {
	for {
		select {
		case <-l.flush:
		case <-l.done:
			return
		}
		select {
		case l.turn <- struct{}{}:
		case <-l.done:
			return
		}
		if l.out = l.queued(l.out[:0]); len(l.out) > 0 {
			if _, err := l.channel.Write(l.out); err != nil {
				_ = l.fail(err)
			}
		}
		l.turn.Unlock()
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *link) sendReset(id uint32) {
	l.mu.Lock()
	l.pending = append(l.pending, formatLine("reset", id)...)
	l.mu.Unlock()
	wake(l.kick)
}

func (l *link) setControl(w io.Writer) {
	l.mu.Lock()
	l.control = w
	l.mu.Unlock()
	wake(l.kick)
}

// sendControl writes what is pending, away from the callers of Close.
func (l *link) sendControl() {
	for {
		select {
		case <-l.kick:
		case <-l.done:
			return
		}
		l.mu.Lock()
		w, lines := l.control, l.pending
		if w != nil {
			l.pending = nil
		}
		l.mu.Unlock()
		if w == nil || len(lines) == 0 {
			continue
		}
		if _, err := io.Copy(w, bytes.NewReader(lines)); err != nil {
			return // only fails with the channel
		}
	}
}

// readControl obeys the peer's control lines until the stream ends. A line that is not in the
// protocol ends the whole channel: nothing that follows could be trusted.
func (l *link) readControl(r io.Reader) {
	for {
		line, err := readLine(r)
		var id uint32
		if err == nil {
			id, err = parseLine(line, "reset")
		}
		if err != nil {
			_ = l.fail(err)
			return
		}
		if c := l.conn(id); c != nil && c.reset() {
			continue
		}
		if err := l.useless(); err != nil {
			_ = l.fail(err)
			return
		}
	}
}
