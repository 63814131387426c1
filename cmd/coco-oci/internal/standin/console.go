// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
)

// console makes a terminal, sends its master through the socket as runc does, and returns the other end.
func console(socket string) (_ *os.File, err error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	defer func() { _ = master.Close() }() // the engine has its own
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	peer, err := openPeer(fd)
	if err != nil {
		return nil, fmt.Errorf("open the terminal: %w", err)
	}
	tty := os.NewFile(uintptr(peer), "tty")
	defer func() {
		if err != nil {
			_ = tty.Close() // nothing was written
		}
	}()
	conn, err := net.Dial("unix", socket) //nolint:noctx // local, and the engine listens before it calls
	if err != nil {
		return nil, fmt.Errorf("connect with the console socket: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("the console socket %s is no Unix socket", socket)
	}
	if err := fdpass.Send(u, []byte("/dev/ptmx"), master); err != nil {
		return nil, fmt.Errorf("send the terminal to the console socket: %w", err)
	}
	return tty, nil
}

// openPeer opens the other end by descriptor: the /dev/pts of this mount namespace may be another one's.
func openPeer(master int) (int, error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, flags)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// raw lets every byte through the terminal as it is: the one in the guest does the editing and the echo.
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read the terminal's settings: %w", err)
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("make the terminal raw: %w", err)
	}
	return nil
}
