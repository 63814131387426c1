// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbstest

import (
	"bytes"
	"net"
	"net/http"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
)

// Mood is how a broker misbehaves.
type Mood struct {
	// connect, if not nil, gets the n-th connection before TLS, the first is 1. True: it has ended it.
	connect func(c net.Conn, n int) bool
	// answer, if not nil, gets a request of the n-th connection. True: it has answered. life ends with the test.
	answer func(w http.ResponseWriter, r *http.Request, n int, life <-chan struct{}) bool
	empty  bool // secrets are empty
}

// Silent never answers a request.
func Silent() Mood {
	return Mood{answer: func(_ http.ResponseWriter, r *http.Request, _ int, life <-chan struct{}) bool {
		select {
		case <-r.Context().Done():
		case <-life:
		}
		return true
	}}
}

// Trickle answers with an endless body, a byte at a time.
func Trickle() Mood {
	return Mood{answer: func(w http.ResponseWriter, r *http.Request, _ int, life <-chan struct{}) bool {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if _, err := w.Write([]byte(" ")); err != nil || http.NewResponseController(w).Flush() != nil {
				return true
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return true
			case <-life:
				return true
			}
		}
	}}
}

// Garbage answers each request with this status and bytes that are no message of the protocol.
func Garbage(status int) Mood {
	return Mood{answer: func(w http.ResponseWriter, _ *http.Request, _ int, _ <-chan struct{}) bool {
		w.WriteHeader(status)
		_, _ = w.Write(bytes.Repeat([]byte("<html>\x00\xff"), 100)) // the client may have gone
		return true
	}}
}

// Busy answers the first connections with status 429 and Retry-After.
func Busy(connections int, after string) Mood {
	return Mood{answer: func(w http.ResponseWriter, _ *http.Request, n int, _ <-chan struct{}) bool {
		if n > connections {
			return false
		}
		w.Header().Set("Retry-After", after)
		_ = fail(w, http.StatusTooManyRequests, kbs.AttestationError, "too many sessions") // likewise
		return true
	}}
}

// Gone closes the first connections without a word.
func Gone(connections int) Mood {
	return Mood{connect: func(c net.Conn, n int) bool {
		if n > connections {
			return false
		}
		_ = c.Close() // nothing was written to it
		return true
	}}
}

// NoTLS answers each connection with bytes that are not TLS.
func NoTLS() Mood {
	return Mood{connect: func(c net.Conn, _ int) bool {
		_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n")) // the client may have gone
		hello := make([]byte, 1)
		_, _ = c.Read(hello) // so that closing does not reset the connection before the client has read
		_ = c.Close()
		return true
	}}
}

// Empty releases secrets without content.
func Empty() Mood { return Mood{empty: true} }

// listener counts connections and lets the mood end them.
type listener struct {
	net.Listener
	b *Broker
}

// Accept returns the next connection that the mood leaves open.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.b.mu.Lock()
		l.b.asked++
		mood, n := l.b.mood, l.b.asked
		l.b.mu.Unlock()
		if mood.connect == nil || !mood.connect(c, n) {
			return c, nil
		}
	}
}
