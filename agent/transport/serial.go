// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	virtioPorts = "/sys/class/virtio-ports"
	maxWrite    = 32 << 10 // the virtio_console driver's limit of one write
)

// WaitPort returns the device of the named virtio-serial port. The kernel makes ports one by one
// and learns their names later, so it looks again after each uevent of the class until ctx is done.
func WaitPort(ctx context.Context, name string) (string, error) {
	ev, err := listenUevents()
	if err != nil {
		return "", err
	}
	defer ev.Close()
	stop := context.AfterFunc(ctx, func() { ev.Close() })
	defer stop()
	for {
		if dev, ok := findPort(virtioPorts, name); ok {
			return dev, nil
		}
		if err := ev.next("virtio-ports"); err != nil {
			if cerr := ctx.Err(); cerr != nil {
				err = cerr
			}
			return "", fmt.Errorf("wait for virtio-serial port %s: %w", name, err)
		}
	}
}

func findPort(class, name string) (string, bool) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(b)) == name {
			return filepath.Join("/dev", e.Name()), true
		}
	}
	return "", false
}

// uevents is a socket on which the kernel announces devices.
type uevents struct{ f *os.File }

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK,
		unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	const kernelGroup = 1 // kobject_uevent.c: events of the kernel itself
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	return &uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

func (u *uevents) Close() { _ = u.f.Close() }

// next returns after an event of the subsystem, or after events were lost: the caller looks anyway.
func (u *uevents) next(subsystem string) error {
	buf := make([]byte, 4096)
	for {
		n, err := u.f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			return nil
		}
		if err != nil {
			return err
		}
		for w := range strings.SplitSeq(string(buf[:n]), "\x00") {
			if w == "SUBSYSTEM="+subsystem {
				return nil
			}
		}
	}
}

// Serial is an open virtio-serial port: a byte stream that begins when the host connects.
type Serial struct {
	f     *os.File
	rc    syscall.RawConn
	begun atomic.Bool
}

// OpenSerial opens the device of a port.
func OpenSerial(dev string) (*Serial, error) {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open virtio-serial port: %w", err)
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Serial{f: f, rc: rc}, nil
}

// Read reads from the host. The driver answers 0 while no host is connected: before the first byte
// that means "not yet" and Read waits for the driver's next event, afterwards it is the end.
func (s *Serial) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	cerr := s.rc.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), p)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return false
			case n == 0 && err == nil && !s.begun.Load():
				return false
			}
			return true
		}
	})
	switch {
	case cerr != nil:
		return 0, cerr
	case err != nil:
		return 0, fmt.Errorf("read virtio-serial port: %w", err)
	case n == 0:
		return 0, io.EOF
	}
	s.begun.Store(true)
	return n, nil
}

// Write writes to the host, in pieces that the driver takes.
func (s *Serial) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, err := s.f.Write(p[:min(len(p), maxWrite)])
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// Splice sends exactly n bytes that the pipe holds, by handing its pages to the driver. The driver
// drops bytes that it cannot queue and returns 0. That ends the channel, so that no loss goes unnoticed.
func (s *Serial) Splice(pipe, n int) error {
	for n > 0 {
		var moved int64
		var err error
		cerr := s.rc.Write(func(fd uintptr) bool {
			for {
				moved, err = unix.Splice(pipe, nil, int(fd), nil, n, unix.SPLICE_F_MOVE)
				if !errors.Is(err, unix.EINTR) {
					return !errors.Is(err, unix.EAGAIN)
				}
			}
		})
		if err = errors.Join(cerr, err); err == nil && moved <= 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("splice into virtio-serial port: %w", err)
		}
		n -= int(moved)
	}
	return nil
}

// Close closes the port and wakes its readers and writers.
func (s *Serial) Close() error { return s.f.Close() }
