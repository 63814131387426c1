// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sink is a place for output.
type sink interface {
	io.WriteCloser
	// peerMatters is called when the process has ended: from now on an absent reader is an error.
	peerMatters()
}

// openSink opens a path or file target.
func openSink(t target) (sink, error) {
	if t.kind == kindFile {
		if err := os.MkdirAll(filepath.Dir(t.path), 0o755); err != nil { // as runc's shim does
			return nil, err
		}
		f, err := os.OpenFile(t.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return nil, err
		}
		return plain{f}, nil
	}
	info, err := os.Stat(t.path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeNamedPipe != 0 {
		e, err := openEnd(t.path, os.O_WRONLY)
		if err != nil {
			return nil, err
		}
		return &fifoSink{e}, nil
	}
	f, err := os.OpenFile(t.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	return plain{f}, nil
}

// plain is a file or device, which needs no reader.
type plain struct{ *os.File }

func (plain) peerMatters() {}

// Close may be called again: the relay closes a place when its output ends and once more at the end.
func (p plain) Close() error {
	if err := p.File.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// end is a FIFO that is first open both ways, so that no peer needs to be there, and after
// switchOver only in the direction that is used, so that the peer's absence shows.
type end struct {
	path string
	flag int // os.O_RDONLY or os.O_WRONLY

	mu       sync.Mutex
	file     *os.File // guarded by mu
	switched bool     // guarded by mu
	closed   bool     // guarded by mu
}

func openEnd(path string, flag int) (*end, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &end{path: path, flag: flag, file: f}, nil
}

func (e *end) current() (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, os.ErrClosed
	}
	return e.file, nil
}

// switchOver replaces the descriptor and wakes goroutines that wait on the old one. The old one stays open until the
// new one is, since a FIFO without any open descriptor loses its content.
func (e *end) switchOver() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.switched {
		return nil
	}
	f, err := reopen(e.file, e.flag)
	if err != nil {
		return fmt.Errorf("reopen %s: %w", e.path, err)
	}
	old := e.file
	e.file, e.switched = f, true
	_ = old.SetDeadline(time.Unix(1, 0)) // wakes a pending Read or Write; a FIFO always has deadlines
	return old.Close()
}

// reopenIfWritten goes back to both directions when a writer is still there, so that it may leave
// and another may come.
func (e *end) reopenIfWritten() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || !e.switched {
		return nil
	}
	gone, err := hungUp(e.file)
	if err != nil || gone {
		return err
	}
	f, err := reopen(e.file, os.O_RDWR)
	if err != nil {
		return fmt.Errorf("reopen %s: %w", e.path, err)
	}
	old := e.file
	e.file, e.switched = f, false
	_ = old.SetDeadline(time.Unix(1, 0)) // as in switchOver
	return old.Close()
}

// hungUp reports whether the FIFO's last writer has closed it.
func hungUp(f *os.File) (gone bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	cerr := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}} //nolint:gosec // a descriptor
		_, err = unix.Poll(p, 0)
		gone = p[0].Revents&unix.POLLHUP != 0
	})
	return gone, errors.Join(err, cerr)
}

// reopen opens the FIFO behind f once more, through the descriptor and not by its path, as the
// client may have unlinked it already.
func reopen(f *os.File, flag int) (out *os.File, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		out, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flag|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if cerr != nil {
		return nil, cerr
	}
	return out, err
}

// Close closes the FIFO and ends a pending Read or Write.
func (e *end) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	return e.file.Close()
}

// moved reports whether an operation failed only because its descriptor was replaced meanwhile.
func (e *end) moved(f *os.File, err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.closed && e.file != f
}

type fifoSink struct{ *end }

// Write writes all of b, across a change of descriptors.
func (s *fifoSink) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		f, err := s.current()
		if err != nil {
			return done, err
		}
		n, err := f.Write(b[done:])
		done += n
		if err != nil && !s.moved(f, err) {
			return done, err
		}
	}
	return done, nil
}

func (s *fifoSink) peerMatters() { _ = s.switchOver() } // on failure the idle grace still bounds the wait

// source is the place that input comes from.
type source struct {
	*end              // a FIFO, or
	file  *os.File    // anything else
	wrote atomic.Bool // something was read
}

func openSource(path string) (*source, error) {
	t, err := parseTarget(path)
	if err != nil {
		return nil, err
	}
	if t.kind == kindBinary {
		return nil, fmt.Errorf("%s: input does not come from a log binary: %w", path, syscall.EINVAL)
	}
	info, err := os.Stat(t.path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		f, err := os.Open(t.path)
		if err != nil {
			return nil, err
		}
		return &source{file: f}, nil
	}
	e, err := openEnd(t.path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return &source{end: e}, nil
}

// finish lets the input end when the last writer is gone and all it wrote was read.
func (s *source) finish() error {
	if s.end == nil {
		return nil
	}
	return s.switchOver()
}

// settle is called when the process starts. It ends the input if a client wrote something and has
// closed the FIFO by then. No CloseIO call may come for it: ctr makes that call only if stdin ends after
// the task was created, and creating one takes as long as a VM boots. A client that wrote nothing may
// come back (attach).
func (s *source) settle() error {
	if s.end == nil || !s.wrote.Load() && !s.waiting() {
		return nil
	}
	if err := s.switchOver(); err != nil {
		return err
	}
	return s.reopenIfWritten()
}

// waiting reports whether the FIFO holds unread bytes.
func (s *source) waiting() bool {
	f, err := s.current()
	if err != nil {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n > 0
}

// Read reads from whichever descriptor is current.
func (s *source) Read(b []byte) (int, error) {
	if s.end == nil {
		return s.file.Read(b)
	}
	for {
		f, err := s.current()
		if err != nil {
			return 0, err
		}
		n, err := f.Read(b)
		if n > 0 {
			s.wrote.Store(true)
		}
		if n > 0 || err == nil || !s.moved(f, err) {
			return n, err
		}
	}
}

// Close closes the place and ends a pending Read.
func (s *source) Close() error {
	if s.end == nil {
		return s.file.Close()
	}
	return s.end.Close()
}
