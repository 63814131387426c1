// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// logFile is the FIFO in the bundle that containerd reads and copies to its own log.
const logFile = "log"

// shimLog is the log: structured messages, and standard error, so that a panic is seen too.
type shimLog struct {
	logger *slog.Logger
	fd     int // of the FIFO, or -1 when there is none
}

// openLog opens the log FIFO for reading and writing. A containerd that restarts thus still finds the messages of the
// meantime. Writes do not block: a message that does not fit is dropped.
func openLog(verbose bool) (*shimLog, error) {
	fd, err := unix.Open(logFile, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("open log FIFO of the bundle: %w", err)
	}
	l := &shimLog{fd: fd}
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	l.logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level, ReplaceAttr: containerdStyle}))
	return l, nil
}

// take makes the log this process's standard error. Until then standard error goes to `start`.
func (l *shimLog) take() error {
	fd := l.fd
	if fd < 0 {
		null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", os.DevNull, err)
		}
		defer func() { _ = unix.Close(null) }() // dup2 makes the one that stays
		fd = null
	}
	if err := unix.Dup2(fd, 2); err != nil {
		return fmt.Errorf("make the log standard error: %w", err)
	}
	return nil
}

// Write writes one message, or drops it when the FIFO is full.
func (l *shimLog) Write(b []byte) (int, error) {
	if l.fd >= 0 {
		_, _ = unix.Write(l.fd, b) // a log that does not fit must not stop the shim
	}
	return len(b), nil
}

// containerdStyle writes levels as containerd's log does.
func containerdStyle(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.LevelKey {
		return slog.String(slog.LevelKey, strings.ToLower(a.Value.String()))
	}
	return a
}

// quietAfter is how long no call may be under way before memory is given back to the system.
const quietAfter = 2 * time.Second

// quiet returns memory when the shim has had nothing to do for a moment: the time after a container's
// start, when what its start needed is garbage.
type quiet struct {
	mu     sync.Mutex
	active int         // guarded by mu
	timer  *time.Timer // guarded by mu
}

func newQuiet() *quiet {
	q := &quiet{}
	q.timer = time.AfterFunc(quietAfter, debug.FreeOSMemory)
	return q
}

func (q *quiet) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo,
	method ttrpc.Method,
) (any, error) {
	// A Wait lasts as long as its process, or its sandbox, and is no work.
	if !strings.HasSuffix(info.FullMethod, "/Wait") && !strings.HasSuffix(info.FullMethod, "/WaitSandbox") {
		q.begin()
		defer q.end()
	}
	return method(ctx, unmarshal)
}

func (q *quiet) begin() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.active++
	q.timer.Stop()
}

func (q *quiet) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.active--; q.active == 0 {
		q.timer.Reset(quietAfter)
	}
}
