// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// uevents is a subscription to the kernel's device events. They only serve to wake up and look
// at sysfs again; nothing in them is believed.
type uevents struct{ f *os.File }

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK,
		unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("uevent socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind uevent socket", err)
	}
	return &uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close ends the subscription.
func (u *uevents) Close() error { return u.f.Close() }

// cancel ends a wait, now and from now on.
func (u *uevents) cancel() { _ = u.f.SetReadDeadline(time.Unix(1, 0)) } // fails only when closed

// wait returns when a block device has come or gone, or when events may have been lost.
func (u *uevents) wait() error {
	buf := make([]byte, 16<<10)
	for {
		n, err := u.f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			return nil // too many at once: look again
		}
		if err != nil {
			return err
		}
		if bytes.Contains(buf[:n], []byte("\x00SUBSYSTEM=block\x00")) {
			return nil
		}
	}
}
