// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/internal/fdpass"
)

// Main is the life of the launched process up to Exec. The program calls it before anything else
// when its first argument is Arg. It returns only on failure, the error being nil when the parent
// has gone without Exec; the program then exits with status 125.
//
// It uses bare system calls, since what it does to descriptors must not meet the Go runtime's
// poller.
func Main() error {
	runtime.LockOSThread() // privileges belong to a thread, and it is this one that executes
	unix.CloseOnExec(controlFD)
	if slices.Contains(os.Args[2:], jailed) {
		if err := jail.Enter(); err != nil {
			return report(fmt.Errorf("confine the VMM: %w", err))
		}
	}
	var room *jail.Spec
	for {
		m, fds, err := receive()
		switch {
		case err != nil || m == nil:
			return err
		case m.Room == nil:
			return report(fmt.Errorf("become %s: %w", m.Argv[0], become(m, fds, room)))
		}
		if err := m.Room.Furnish(fds); err != nil {
			return report(fmt.Errorf("confine the VMM: %w", err))
		}
		room = m.Room
	}
}

// report tells the parent why it failed.
func report(err error) error {
	text := err.Error()
	_ = unix.Send(controlFD, []byte(text[:min(len(text), 4096)]), unix.MSG_NOSIGNAL) // parent may be gone
	return err
}

func receive() (*message, []int, error) {
	buf := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	var n, oobn, flags int
	for {
		var err error
		n, oobn, flags, _, err = unix.Recvmsg(controlFD, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("receive command line on descriptor %d (this command is not for people): %w",
				controlFD, err)
		}
		break
	}
	if n == 0 {
		return nil, nil, nil
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, nil, errors.New("receive command line: it was cut short")
	}
	fds, err := fdpass.ParseRights(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	var m message
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return nil, nil, fmt.Errorf("decode command line: %w", err)
	}
	if (len(m.Argv) == 0) != (m.Room != nil) || m.Files != len(fds) {
		return nil, nil, fmt.Errorf("command line of %d words with %d of %d files", len(m.Argv), len(fds), m.Files)
	}
	return &m, fds, nil
}

// orphaned says whether the parent has gone, before its end would have ended us.
func orphaned() bool {
	n, _, err := unix.Recvfrom(controlFD, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil
}

// become puts the files in their places and executes. Received descriptors are beyond controlFD,
// since everything below is occupied, so none is overwritten by another.
func become(m *message, fds []int, room *jail.Spec) error {
	for i, fd := range fds {
		if fd <= controlFD {
			return fmt.Errorf("file %d arrived as descriptor %d", i, fd)
		}
		if err := unix.Dup3(fd, firstFD+i, 0); err != nil {
			return fmt.Errorf("move file %d to descriptor %d: %w", i, firstFD+i, err)
		}
	}
	for fd := firstFD + len(fds); fd < controlFD; fd++ {
		unix.CloseOnExec(fd)
	}
	if room != nil {
		if err := room.Drop(fds); err != nil {
			return err
		}
		if orphaned() {
			return errors.New("the parent has ended")
		}
	}
	return syscall.Exec(m.Argv[0], m.Argv, m.Env)
}
