// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
)

// Main is the life of the launched process up to Exec. The program calls it before anything else
// when its first argument is Arg. It returns only on failure, the error being nil when the parent
// has gone without Exec; the program then exits with status 125.
//
// It uses bare system calls, since what it does to descriptors must not meet the Go runtime's
// poller.
func Main() error {
	unix.CloseOnExec(controlFD)
	m, fds, err := receive()
	if err != nil || m == nil {
		return err
	}
	if err := become(m, fds); err != nil {
		err = fmt.Errorf("become %s: %w", m.Argv[0], err)
		text := err.Error()
		_ = unix.Send(controlFD, []byte(text[:min(len(text), 4096)]), unix.MSG_NOSIGNAL) // parent may be gone
		return err
	}
	return nil
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
			return nil, nil, fmt.Errorf("receive command line on descriptor %d (this command is not for people): %w", controlFD, err)
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
	if len(m.Argv) == 0 || m.Files != len(fds) {
		return nil, nil, fmt.Errorf("command line of %d words with %d of %d files", len(m.Argv), len(fds), m.Files)
	}
	return &m, fds, nil
}

// become puts the files in their places and executes. Received descriptors are beyond controlFD,
// since everything below is occupied, so none is overwritten by another.
func become(m *message, fds []int) error {
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
	return syscall.Exec(m.Argv[0], m.Argv, m.Env) //nolint:gosec // that is its job
}
