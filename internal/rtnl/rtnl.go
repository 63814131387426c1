// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rtnl speaks route netlink (man 7 rtnetlink): one socket, changes with their acknowledgement, lists
// read completely. It knows the framing; the caller interprets the messages. The shim uses it in place of a
// library because each pod pays for the shim's memory: see docs/decisions/network.md.
package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tries bounds how often a list is read again because it changed while it was read.
const tries = 32

// bufferSize holds any datagram of the kernel's lists, which it cuts at 32 KiB, and any single object.
const bufferSize = 64 << 10

var errInterrupted = errors.New("it changed while it was read")

// Conn is a socket of one network namespace: the one of the thread that opened it. It may be used by several
// goroutines, one exchange at a time.
type Conn struct {
	mu  sync.Mutex
	f   *os.File
	seq uint32
}

// Message is one answer of the kernel: its type (RTM_NEWLINK, …) and what follows the netlink header.
type Message struct {
	Type uint16
	Body []byte
}

// Open opens a socket in the thread's network namespace. The timeout bounds each wait for the kernel.
func Open(timeout time.Duration) (*Conn, error) { return openFor(unix.NETLINK_ROUTE, timeout) }

// OpenDiag is Open for questions about sockets (man 7 sock_diag), which have the same framing.
func OpenDiag(timeout time.Duration) (*Conn, error) { return openFor(unix.NETLINK_SOCK_DIAG, timeout) }

func openFor(protocol int, timeout time.Duration) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	c := &Conn{f: os.NewFile(uintptr(fd), "netlink")}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket: %w", err), c.Close())
	}
	return c, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.f.Close() }

// Change asks for a change and waits until it is made. flags are NLM_F_* beyond request and acknowledgement.
// The error is the kernel's errno.
func (c *Conn) Change(kind, flags uint16, body ...[]byte) error {
	_, err := c.exchange(kind, flags|unix.NLM_F_ACK, body)
	return err
}

// Get asks for one object. The error is the kernel's errno.
func (c *Conn) Get(kind uint16, body ...[]byte) (Message, error) {
	got, err := c.exchange(kind, unix.NLM_F_ACK, body)
	if err != nil {
		return Message{}, err
	}
	if len(got) != 1 {
		return Message{}, fmt.Errorf("netlink: %d answers where one was asked for: %w", len(got), unix.EPROTO)
	}
	return got[0], nil
}

// List asks for all objects of a kind, again when they change meanwhile: the pieces would not belong together.
// what names them in errors.
func (c *Conn) List(ctx context.Context, what string, kind uint16, body ...[]byte) ([]Message, error) {
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
		list, err := c.exchange(kind, unix.NLM_F_DUMP, body)
		if err == nil {
			return list, nil
		}
		if !errors.Is(err, errInterrupted) || try == tries {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
	}
}

// exchange sends one request and reads the answers up to the acknowledgement or the end of the list.
func (c *Conn) exchange(kind, flags uint16, body [][]byte) ([]Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	raw, err := c.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var list []Message
	// Control keeps the descriptor valid while the callback runs, even if the Conn is closed.
	if e := raw.Control(func(fd uintptr) {
		list, err = talk(int(fd), c.seq, request(kind, flags, c.seq, body))
	}); e != nil {
		return nil, e
	}
	return list, err
}

func request(kind, flags uint16, seq uint32, body [][]byte) []byte {
	m := make([]byte, unix.SizeofNlMsghdr, 256)
	for _, b := range body {
		m = append(m, b...)
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m))) //nolint:gosec // a few hundred bytes
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(m[8:], seq)
	return m
}

func talk(fd int, seq uint32, request []byte) ([]Message, error) {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink: send: %w", err)
	}
	a := answer{seq: seq}
	for buf := make([]byte, bufferSize); !a.done; {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, fmt.Errorf("netlink: no answer: %w", os.ErrDeadlineExceeded)
		case err != nil:
			return nil, fmt.Errorf("netlink: receive: %w", err)
		case n > len(buf):
			return nil, fmt.Errorf("netlink: an answer of %d bytes, more than %d: %w", n, len(buf), unix.EMSGSIZE)
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // only the kernel is asked
		}
		if err := a.take(buf[:n]); err != nil {
			return nil, err
		}
	}
	if a.interrupted {
		return nil, errInterrupted
	}
	return a.list, nil
}

// answer gathers the messages that belong to one request.
type answer struct {
	seq               uint32
	list              []Message
	done, interrupted bool
}

var errShort = fmt.Errorf("netlink: an answer that is not understood: %w", unix.EPROTO)

// take reads one datagram. An error of the kernel is its errno.
func (a *answer) take(b []byte) error {
	for len(b) > 0 && !a.done {
		if len(b) < unix.SizeofNlMsghdr {
			return errShort
		}
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return errShort
		}
		kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		seq, body := binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:length]
		b = b[min(len(b), align(length)):]
		if seq != a.seq {
			continue // late answer to a request that timed out
		}
		a.interrupted = a.interrupted || flags&unix.NLM_F_DUMP_INTR != 0
		switch kind {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			a.done = true
			if len(body) < 4 {
				return errShort
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code != 0 { //nolint:gosec // it has a sign
				return unix.Errno(-code) //nolint:gosec // an errno
			}
		case unix.NLMSG_NOOP:
		default:
			a.list = append(a.list, Message{Type: kind, Body: append([]byte(nil), body...)})
		}
	}
	return nil
}
