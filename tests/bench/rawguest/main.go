// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command rawguest is the /init of the guest that the benchmark compares streams with: it moves
// bytes over the bare virtio-serial port, with no multiplexing and no container.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := serve(); err != nil {
		if f, ferr := os.OpenFile("/dev/console", os.O_WRONLY, 0); ferr == nil {
			fmt.Fprintln(f, "rawguest:", err)
		}
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func serve() error {
	for _, m := range [][2]string{{"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	ports, err := filepath.Glob("/sys/class/virtio-ports/*")
	if err != nil || len(ports) != 1 {
		return fmt.Errorf("%d virtio-serial ports, want one: %w", len(ports), err)
	}
	fd, err := unix.Open("/dev/"+filepath.Base(ports[0]), unix.O_RDWR, 0) // blocking on purpose
	if err != nil {
		return err
	}
	port := blocking(fd)
	if _, err := port.Write([]byte("ready\n")); err != nil {
		return err
	}
	r := bufio.NewReaderSize(port, 64<<10)
	buf := make([]byte, 32<<10)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		var n int64
		switch {
		case strings.HasPrefix(line, "out "):
			if _, err := fmt.Sscanf(line, "out %d\n", &n); err != nil {
				return err
			}
			for ; n > 0; n -= int64(len(buf)) {
				if _, err := port.Write(buf[:min(n, int64(len(buf)))]); err != nil {
					return err
				}
			}
		case strings.HasPrefix(line, "in "):
			if _, err := fmt.Sscanf(line, "in %d\n", &n); err != nil {
				return err
			}
			if _, err := io.CopyN(io.Discard, r, n); err != nil {
				return err
			}
			if _, err := port.Write([]byte("done\n")); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// blocking reads and writes a descriptor with plain system calls: one byte stream needs no poller.
type blocking int

func (b blocking) Read(p []byte) (int, error) {
	n, err := unix.Read(int(b), p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

func (b blocking) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(int(b), p[done:])
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}
