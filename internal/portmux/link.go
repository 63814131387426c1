// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"bytes"
	"io"
	"sync"

	"github.com/hashicorp/yamux"
)

// link is what both ends have: the session, the open connections, and the control stream.
type link struct {
	session *yamux.Session
	tasks   sync.WaitGroup // goroutines that end with the session

	mu      sync.Mutex
	closing bool             // guarded by mu: no more tasks
	conns   map[uint32]*Conn // guarded by mu; by stream number
	pending []byte           // guarded by mu; control lines to send
	control io.Writer        // guarded by mu; nil until the control stream is up
	kick    chan struct{}    // capacity 1: pending or control has changed
}

func newLink(rwc io.ReadWriteCloser, open func(io.ReadWriteCloser, *yamux.Config) (*yamux.Session, error)) *link {
	s, err := open(&channel{ReadWriteCloser: rwc}, config())
	if err != nil {
		panic("portmux: the fixed yamux configuration is invalid: " + err.Error())
	}
	l := &link{session: s, conns: make(map[uint32]*Conn), kick: make(chan struct{}, 1)}
	l.spawn(l.sendControl)
	return l
}

func (l *link) close() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	err := l.session.Close()
	l.tasks.Wait()
	return err
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

// adopt makes a Conn of a stream whose handshake is done or under way.
func (l *link) adopt(s *yamux.Stream, port uint32) *Conn {
	c := &Conn{stream: s, link: l, port: port}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[s.StreamID()] = c
	return c
}

func (l *link) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c.stream.StreamID())
}

func (l *link) sendReset(id uint32) {
	l.mu.Lock()
	l.pending = append(l.pending, formatLine("reset", id)...)
	l.mu.Unlock()
	l.notify()
}

func (l *link) setControl(w io.Writer) {
	l.mu.Lock()
	l.control = w
	l.mu.Unlock()
	l.notify()
}

func (l *link) notify() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// sendControl writes what is pending, away from the callers of Close.
func (l *link) sendControl() {
	for {
		select {
		case <-l.kick:
		case <-l.session.CloseChan():
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
			return // only fails with the session
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
			go l.session.Close() // not from a task that close waits for
			return
		}
		l.mu.Lock()
		c := l.conns[id]
		l.mu.Unlock()
		if c != nil {
			c.reset()
		}
	}
}
