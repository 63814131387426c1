// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"crypto"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/coco-shim/coco/attestation/tpm"
)

// limited is a listener with a bound for open connections. Accept waits when it is reached.
type limited struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func newLimited(l net.Listener, n int) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, n), done: make(chan struct{})}
}

// Accept waits for a slot and for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotted{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends Accept.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// slotted is a connection that frees its slot.
type slotted struct {
	net.Conn
	free func()
}

// Close closes the connection.
func (c *slotted) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// parseSelection reads a bank and PCRs, such as sha256:0-7,9.
func parseSelection(text string) (tpm.Selection, error) {
	var s tpm.Selection
	bad := fmt.Errorf("--pcr-selection %q is not one such as sha256:0-7,9", text)
	bank, list, _ := strings.Cut(text, ":")
	switch bank {
	case "sha256":
		s.Bank = crypto.SHA256
	case "sha384":
		s.Bank = crypto.SHA384
	default:
		return s, bad
	}
	last := -1
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil || a <= last || b < a || b > 23 {
			return s, bad
		}
		for n := a; n <= b; n++ {
			s.PCRs = append(s.PCRs, n)
		}
		last = b
	}
	return s, nil
}
