// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loggerStart = 10 * time.Second // until the logger closes its ready descriptor
	loggerEnd   = 10 * time.Second // from end of output to the logger's exit
)

// logger is a binary logger as containerd defines it: stdout on descriptor 3, stderr on 4, and
// descriptor 5 to be closed when it is ready.
type logger struct {
	cmd            *exec.Cmd
	stdout, stderr sink
	errors         *tail
	exited         chan struct{}
	exitErr        error // valid once exited is closed
}

func startLogger(ctx context.Context, t target, cfg Config) (_ *logger, err error) {
	var open []io.Closer
	defer func() {
		if err != nil {
			for _, c := range open {
				_ = c.Close() // nothing was written yet
			}
		}
	}()
	pipe := func() (r, w *os.File, perr error) {
		if r, w, perr = os.Pipe(); perr == nil {
			open = append(open, r, w)
		}
		return r, w, perr
	}
	outR, outW, err := pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := pipe()
	if err != nil {
		return nil, err
	}
	readyR, readyW, err := pipe()
	if err != nil {
		return nil, err
	}
	l := &logger{stdout: plain{outW}, stderr: plain{errW}, errors: &tail{}, exited: make(chan struct{})}
	l.cmd = exec.Command(t.path, t.args...) // the URI names it; it outlives the request
	l.cmd.Env = append(os.Environ(), "CONTAINER_ID="+cfg.ID, "CONTAINER_NAMESPACE="+cfg.Namespace)
	l.cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	l.cmd.Stderr = l.errors
	l.cmd.WaitDelay = time.Second // a child of the logger may hold its stderr
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the logger; wait waits for it
		l.exitErr = l.cmd.Wait()
		close(l.exited)
	}()
	for _, f := range []*os.File{outR, errR, readyW} {
		_ = f.Close() // the logger has its own
	}
	if err := l.awaitReady(ctx, readyR); err != nil {
		l.stop()
		return nil, err
	}
	_ = readyR.Close() // the logger has signalled that it is ready
	return l, nil
}

func (l *logger) awaitReady(ctx context.Context, ready *os.File) error {
	deadline := time.Now().Add(loggerStart)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := ready.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	_, err := ready.Read(b[:])
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for %s to be ready (it closes descriptor 5): %w", l.cmd.Path, err)
	}
	select {
	case <-l.exited:
		return fmt.Errorf("%s ended before it was ready: %w: %s", l.cmd.Path, l.exitErr, l.errors)
	default:
		return nil
	}
}

// wait waits for the logger to process the rest of its input. Its pipes are closed by now.
func (l *logger) wait() error {
	timer := time.NewTimer(loggerEnd)
	defer timer.Stop()
	select {
	case <-l.exited:
	case <-timer.C:
		l.stop()
		return fmt.Errorf("log binary %s did not end within %s of its input: killed", l.cmd.Path, loggerEnd)
	}
	if l.exitErr != nil {
		return fmt.Errorf("log binary %s: %w: %s", l.cmd.Path, l.exitErr, l.errors)
	}
	return nil
}

// stop ends the logger by force, terminate before kill.
func (l *logger) stop() {
	_ = l.cmd.Process.Signal(unix.SIGTERM) // may have ended
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-l.exited:
	case <-timer.C:
		_ = l.cmd.Process.Kill() // may have ended
		<-l.exited
	}
}

// tail keeps the last bytes of a process's complaints. Its reader waits for the process first.
type tail struct{ buf bytes.Buffer }

// Write keeps at most 4 KiB.
func (t *tail) Write(b []byte) (int, error) {
	const most = 4 << 10
	t.buf.Write(b)
	if n := t.buf.Len(); n > most {
		t.buf.Next(n - most)
	}
	return len(b), nil
}

// String returns the kept text.
func (t *tail) String() string { return string(bytes.TrimSpace(t.buf.Bytes())) }
