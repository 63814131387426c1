// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nameserver asks the resolver that a container engine has in a pod's network namespace. Docker answers the
// names of a network's containers at 127.0.0.11 there, which is another loopback than the VM's. The guest sends its
// questions over a stream (package lookup), and each is asked from inside the namespace by the transport that it came
// with. The guest is not trusted: the length of questions and their number at a time are bounded.
package nameserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/lookup"
	"github.com/coco-shim/coco/network/netns"
)

// Asker asks the resolver of a network namespace, until it is closed.
type Asker struct {
	ns *os.File
	at unix.SockaddrInet4
}

// patience bounds one question; the guest's clients ask again after 5 seconds.
const patience = 4 * time.Second

// Open makes the Asker of the namespace at path.
func Open(path string) (*Asker, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the engine's resolver: %w", err)
	}
	const dns = 53
	return &Asker{ns: ns, at: unix.SockaddrInet4{Port: dns, Addr: [4]byte{127, 0, 0, 11}}}, nil
}

// Close is idempotent. Nothing may be served any more.
func (a *Asker) Close() error {
	if err := a.ns.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Serve answers the questions that come over c until ctx ends, the guest closes the connection or it breaks the rules.
// It closes c.
func (a *Asker) Serve(ctx context.Context, c net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var (
		wg   sync.WaitGroup
		send sync.Mutex
		room = make(chan struct{}, lookup.MaxFlying)
	)
	defer wg.Wait()
	defer c.Close()
	for {
		m, err := lookup.Read(c, lookup.MaxQuery)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		select {
		case room <- struct{}{}: // a guest that keeps to the bound is never made to wait
		case <-ctx.Done():
			return nil
		}
		wg.Go(func() {
			defer func() { <-room }()
			if lookup.IsQuery(m.Body) {
				m.Body = a.ask(m)
			} else {
				m.Body = nil
			}
			send.Lock()
			defer send.Unlock()
			_ = c.SetWriteDeadline(time.Now().Add(patience)) // fails only when it is closed, and so does the frame
			if err := lookup.Write(c, m); err != nil {
				_ = c.Close() // the guest reads no more, or has gone
			}
		})
	}
}

// ask returns the answer to a question, or nothing when there is none.
func (a *Asker) ask(m lookup.Message) []byte {
	kind := unix.SOCK_DGRAM
	if m.TCP {
		kind = unix.SOCK_STREAM
	}
	c, err := a.dial(kind)
	if err != nil {
		return nil
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil
	}
	if m.TCP {
		return overTCP(c, m.Body)
	}
	return overUDP(c, m.Body)
}

// dial connects a socket inside the namespace. It is made by hand: the net package would make it on any thread.
func (a *Asker) dial(kind int) (c net.Conn, err error) {
	return c, netns.Enter(a.ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "nameserver")
		defer f.Close() // FileConn has a copy
		limit := unix.NsecToTimeval(patience.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil { // of connect, too
			return err
		}
		if err := unix.Connect(fd, &a.at); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
}

// overUDP takes the first datagram that answers the question.
func overUDP(c net.Conn, query []byte) []byte {
	if _, err := c.Write(query); err != nil {
		return nil
	}
	buf := make([]byte, lookup.MaxAnswer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil
		}
		if lookup.Answers(buf[:n], query) {
			return buf[:n]
		}
	}
}

// overTCP puts the length before the message (RFC 1035, 4.2.2).
func overTCP(c net.Conn, query []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(len(query))) //nolint:gosec // at most lookup.MaxQuery
	if _, err := c.Write(append(out, query...)); err != nil {
		return nil
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, answer); err != nil || !lookup.Answers(answer, query) {
		return nil
	}
	return answer
}
