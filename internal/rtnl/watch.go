// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch reports changes in one network namespace: that of the thread that opened it. It does not report which: the
// caller reads the namespace again. So it needs no memory for notifications, and may miss some that the kernel
// drops from a full queue.
type Watch struct{ f *os.File }

// Subscribe opens a Watch of multicast groups (unix.RTNLGRP_LINK, …). Close it.
func Subscribe(groups ...uint) (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	w := &Watch{f: os.NewFile(uintptr(fd), "netlink watch")}
	addr := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		addr.Groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, addr); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to netlink groups: %w", err), w.Close())
	}
	return w, nil
}

// Close closes the socket and ends a Wait.
func (w *Watch) Close() error { return w.f.Close() }

// Wait waits for a change, and then until none has come for the time quiet, at most limit in all: an interface
// is usually set up in several steps. After Close it returns os.ErrClosed.
func (w *Watch) Wait(quiet, limit time.Duration) error {
	if err := w.next(time.Time{}); err != nil {
		return err
	}
	for end := time.Now().Add(limit); ; {
		until := time.Now().Add(quiet)
		if until.After(end) {
			until = end
		}
		err := w.next(until)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// next takes one notification.
func (w *Watch) next(deadline time.Time) error {
	if err := w.f.SetReadDeadline(deadline); err != nil {
		return os.ErrClosed // the one reason, which it has another name for
	}
	var some [1]byte // the kernel drops the rest
	if _, err := w.f.Read(some[:]); err != nil && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	return nil
}
