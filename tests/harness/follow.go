// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Follower reads a daemon's log as it grows. The shims' lines are in it too.
type Follower struct {
	file   *os.File
	events *os.File // inotify
	rest   []byte   // read, but not returned
}

// Follow begins at the end of the log. The caller closes it.
func (d *Daemon) Follow() (*Follower, error) {
	f, err := os.Open(d.Log())
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, d.Log(), unix.IN_MODIFY)
	}
	if err == nil {
		_, err = f.Seek(0, 2)
	}
	if err != nil {
		_ = f.Close() // only read
		return nil, fmt.Errorf("follow %s: %w", d.Log(), err)
	}
	return &Follower{file: f, events: os.NewFile(uintptr(fd), "inotify")}, nil
}

// Close ends it.
func (f *Follower) Close() {
	_ = f.file.Close()   // only read
	_ = f.events.Close() // likewise
}

// Until returns the first line that match accepts, as soon as it is there.
func (f *Follower) Until(ctx context.Context, match func(line string) bool) (string, error) {
	defer context.AfterFunc(ctx, func() { _ = f.events.Close() })() // ends the wait below
	buf := make([]byte, 64<<10)
	for {
		for {
			line, rest, ok := bytes.Cut(f.rest, []byte("\n"))
			if !ok {
				break
			}
			f.rest = rest
			if match(string(line)) {
				return string(line), nil
			}
		}
		n, _ := f.file.Read(buf) // at the end there is nothing yet
		f.rest = append(f.rest, buf[:n]...)
		if n > 0 {
			continue
		}
		if _, err := f.events.Read(buf); err != nil {
			return "", fmt.Errorf("wait for a line of the log: %w", context.Cause(ctx))
		}
	}
}
