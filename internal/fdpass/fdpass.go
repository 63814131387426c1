// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fdpass makes connected socket pairs and sends open files over them (SCM_RIGHTS).
package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxFiles is how many files one message may carry: SCM_MAX_FD of Linux.
const MaxFiles = 253

// Pair makes a connected pair of Unix sockets of the given type (unix.SOCK_STREAM or
// unix.SOCK_SEQPACKET): our end, ready for use, and the peer's end, to be handed to another
// process. The caller closes both.
func Pair(name string, typ int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair for %s: %w", name, err)
	}
	ours, peer := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours) // duplicates
	_ = ours.Close()                // nothing was written to it
	if err != nil {
		_ = peer.Close() // likewise
		return nil, nil, fmt.Errorf("make socket pair for %s: %w", name, err)
	}
	return conn.(*net.UnixConn), peer, nil
}

// Send writes data, which must not be empty, with the files attached to its first byte. The files
// stay open here.
func Send(c *net.UnixConn, data []byte, files ...*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("send %d files in one message: at most %d are possible", len(files), MaxFiles)
	}
	return withFDs(files, nil, func(fds []int) error {
		n, _, err := c.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		for n < len(data) { // a stream socket may take less
			m, err := c.Write(data[n:])
			if err != nil {
				return err
			}
			n += m
		}
		return nil
	})
}

// withFDs calls fn with the descriptors of files, which stay valid during the call. It goes
// through SyscallConn since File.Fd would make the file blocking.
func withFDs(files []*os.File, fds []int, fn func([]int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", files[0].Name(), err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = withFDs(files[1:], append(fds, int(fd)), fn)
	})
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", files[0].Name(), err)
	}
	return inner
}

// Recv reads one message into buf and takes at most maxFiles files from it; they are closed on
// exec. A message cut short, or with more files, is an error, and its files are closed.
func Recv(c *net.UnixConn, buf []byte, maxFiles int) (int, []*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return 0, nil, err
	}
	fds, err := ParseRights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("message was cut short: larger than %d bytes or more than %d files", len(buf), maxFiles)
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd) // received a moment ago, nothing written
		}
		return 0, nil, err
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), fmt.Sprintf("received %d", i))
	}
	return n, files, nil
}

// ParseRights extracts the descriptors of a control message buffer. On error it returns those
// that it understood, for the caller to close.
func ParseRights(oob []byte) ([]int, error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		if len(msgs[i].Data)%4 != 0 { // the kernel sends whole ones, and ParseUnixRights relies on it
			return fds, errors.New("parse control message: part of a descriptor")
		}
		got, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return fds, fmt.Errorf("parse control message: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
