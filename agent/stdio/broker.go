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
// maxPending streams are greeted or unclaimed; further ones wait, and beyond maxWaiting the client reads "no\n". Other
// errors are the text of the answer (package gate). A stream that waits costs its connection and no goroutine: the Go
// runtime never frees the memory that it has needed for the most goroutines at once.
type Broker struct {
	admit     func() error // decides whether the host may open a stream now
	claimTime time.Duration

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	taken   int                  // guarded by mu; places of maxPending, by streams that are greeted or pending
	conns   map[net.Conn]bool    // guarded by mu; being greeted
	pending map[uint32]*unlooked // guarded by mu
	waiting []net.Conn           // guarded by mu; for a place, in their order
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
		claimTime: defaultClaimTime,
		conns:     map[net.Conn]bool{}, pending: map[uint32]*unlooked{},
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
		}
	}
}

// greet makes a stream that has its place a pending one.
func (b *Broker) greet(c net.Conn) {
	defer b.wg.Done()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.conns, c)
	}()
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
		b.mu.Lock()
		b.leave()
		b.mu.Unlock()
		_ = c.Close()
	}
}

// enter gives a stream a place, or has it wait for one. It returns false when too many wait.
func (b *Broker) enter(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed || len(b.waiting) >= maxWaiting:
		return false
	case b.taken >= maxPending:
		b.waiting = append(b.waiting, c)
	default:
		b.taken++
		b.begin(c)
	}
	return true
}

// begin greets a stream. The caller holds mu.
func (b *Broker) begin(c net.Conn) {
	b.conns[c] = true
	b.wg.Add(1)
	go b.greet(c)
}

// leave passes a place on to the stream that waits the longest. The caller holds mu.
func (b *Broker) leave() {
	if len(b.waiting) == 0 {
		b.taken--
		return
	}
	c := b.waiting[0]
	b.waiting[0] = nil // the array outlives its first elements
	if b.waiting = b.waiting[1:]; len(b.waiting) == 0 {
		b.waiting = nil
	}
	b.begin(c)
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
	ok = ok && u.conn == c
	if ok {
		u.timer.Stop()
		delete(b.pending, n)
		b.leave()
	}
	b.mu.Unlock()
	if ok {
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
		b.leave()
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
	b.closed = true
	closeAll(b.waiting)
	b.waiting = nil
	for c := range b.conns {
		_ = c.Close()
	}
	for n, u := range b.pending {
		u.timer.Stop()
		_ = u.conn.Close()
		delete(b.pending, n)
		b.leave()
	}
	b.mu.Unlock()
	b.wg.Wait()
}
