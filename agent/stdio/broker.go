// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/api/contract"
)

// Bounds of the broker.
const (
	maxPending       = 64               // streams that wait for a request
	maxWaiting       = 1024             // streams that wait for a place among these
	defaultClaimTime = 30 * time.Second // for a request that names the stream
)

// greeting gives a stream its number.
var greeting = gate.Greeting{Word: contract.StreamWord, Max: math.MaxUint32}

// Broker holds byte streams that the host has opened until a request claims them by number. A
// client writes "stream <n>\n" and reads "ok\n"; from then on the connection is stream n. At most
// maxPending streams are unclaimed; further ones wait, and beyond maxWaiting the client reads "no\n". Other errors are
// the text of the answer (package gate).
type Broker struct {
	admit     func() error // decides whether the host may open a stream now
	claimTime time.Duration
	places    chan struct{} // capacity maxPending: one taken by each stream that is greeted or pending
	over      chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	conns   map[net.Conn]bool    // guarded by mu; being greeted
	pending map[uint32]*unlooked // guarded by mu
	wg      sync.WaitGroup       // greetings
}

// unlooked is a stream that nobody has claimed.
type unlooked struct {
	conn  net.Conn
	timer *time.Timer
}

// NewBroker makes a broker. admit decides about each stream before its greeting is answered.
func NewBroker(admit func() error) *Broker {
	return &Broker{
		admit:     admit,
		claimTime: defaultClaimTime, places: make(chan struct{}, maxPending), over: make(chan struct{}),
		conns: map[net.Conn]bool{}, pending: map[uint32]*unlooked{},
	}
}

// Serve greets connections of l until l is closed.
func (b *Broker) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if !b.enter(c) {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(c, contract.GreetingFull+"\n") // a client that does not read it learns as much by the end
			_ = c.Close()
			continue
		}
		go func() {
			defer b.wg.Done()
			b.serve(c)
			b.mu.Lock()
			delete(b.conns, c)
			b.mu.Unlock()
		}()
	}
}

// serve gives a stream its place and greets it.
func (b *Broker) serve(c net.Conn) {
	select {
	case b.places <- struct{}{}:
	case <-b.over:
		_ = c.Close()
		return
	}
	var n uint32
	// The stream is registered before the answer, so that a client that has read it can name the stream in a request at
	// once.
	err := greeting.Admit(c, func(number uint32) error {
		err := b.admit()
		if err == nil {
			err = b.register(number, c)
		}
		if err == nil {
			n = number
		}
		return err
	})
	switch {
	case err == nil:
	case n != 0: // registered, and the answer failed
		b.drop(n, c)
	default:
		<-b.places
		_ = c.Close()
	}
}

func (b *Broker) enter(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || len(b.conns)+len(b.pending) >= maxPending+maxWaiting {
		return false
	}
	b.conns[c] = true
	b.wg.Add(1)
	return true
}

func (b *Broker) register(n uint32, c net.Conn) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	if _, ok := b.pending[n]; ok {
		return fmt.Errorf("stream %d is open already: %w", n, errdefs.ErrAlreadyExists)
	}
	delete(b.conns, c) // or it would count twice
	b.pending[n] = &unlooked{conn: c, timer: time.AfterFunc(b.claimTime, func() { b.drop(n, c) })}
	return nil
}

// drop closes stream n if it is still c and unclaimed.
func (b *Broker) drop(n uint32, c net.Conn) {
	b.mu.Lock()
	u, ok := b.pending[n]
	if ok && u.conn == c {
		u.timer.Stop()
		delete(b.pending, n)
	}
	b.mu.Unlock()
	if ok && u.conn == c {
		<-b.places
		_ = c.Close()
	}
}

// Claim takes the streams with the given numbers; 0 yields nil. It takes all of them or none: when
// one is not there the others are closed, for the request that named them has failed.
func (b *Broker) Claim(numbers ...uint32) ([]net.Conn, error) {
	b.mu.Lock()
	conns := make([]net.Conn, len(numbers))
	var errs []error
	for i, n := range numbers {
		if n == 0 {
			continue
		}
		u, ok := b.pending[n]
		if !ok {
			errs = append(errs, fmt.Errorf("stream %d is not connected: connect it before the request names it: %w", n,
				errdefs.ErrInvalidArgument))
			continue
		}
		u.timer.Stop()
		delete(b.pending, n)
		<-b.places
		conns[i] = u.conn
	}
	b.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		closeAll(conns)
		return nil, err
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// Close drops every unclaimed stream and waits for greetings to end.
func (b *Broker) Close() {
	b.mu.Lock()
	if !b.closed {
		close(b.over)
	}
	b.closed = true
	for c := range b.conns {
		_ = c.Close()
	}
	for n, u := range b.pending {
		u.timer.Stop()
		_ = u.conn.Close()
		delete(b.pending, n)
		<-b.places
	}
	b.mu.Unlock()
	b.wg.Wait()
}
