// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/lock"
)

// maxRead bounds the answer to one Read; hosts ask for up to 32 KiB.
const maxRead = 64 << 10

// bufSize is the size of one copy step: the capacity of a pipe.
const bufSize = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufSize); return &b }}

// outputPipe is the capacity of an output's pipe. A large one means fewer context switches between the process and the
// agent, which are slow on an emulated processor.
const outputPipe = 1 << 20

// forward copies an output pipe to its stream, uncopied where the stream's channel takes pages.
func forward(conn net.Conn, f *os.File) error {
	if s, ok := conn.(interface {
		SpliceFrom(f *os.File) (int64, error)
	}); ok {
		if _, err := s.SpliceFrom(f); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	_, err := transfer(conn, f)
	return err
}

// transfer copies from r to w with a pooled buffer. The end of a terminal counts as end of file.
func transfer(w io.Writer, r io.Reader) (int64, error) {
	bp, _ := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	var total int64
	for {
		n, err := read(r, *bp)
		if n > 0 {
			m, werr := w.Write((*bp)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if isEOF(err) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// drain copies the bytes that are in the pipe or terminal now, without waiting for more.
func drain(w io.Writer, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	bp, _ := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		var n int
		cerr := rc.Control(func(fd uintptr) { n, err = unix.Read(int(fd), *bp) })
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err = errors.Join(cerr, err); err != nil || n == 0 {
			return err
		}
		if _, err := w.Write((*bp)[:n]); err != nil {
			return err
		}
	}
}

// read reads from a pipe or terminal. It treats EIO from a pty as EOF only when repeated. The last bytes of a process
// may still be on their way to the master when a read finds no data and the other side closed, and returns EIO (Linux,
// n_tty_read): about one of a thousand terminals lost its last bytes that way. The next read waits for those bytes.
func read(r io.Reader, p []byte) (int, error) {
	n, err := r.Read(p)
	if n == 0 && errors.Is(err, unix.EIO) {
		return r.Read(p)
	}
	return n, err
}

// isEOF reports whether err is an orderly end of a stream. A terminal's master reads EIO once the last process has
// closed the other side.
func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) }

// end is our end of a pipe or terminal. Reads and writes can be interrupted by a context.
type end struct {
	f    *os.File
	turn lock.Mutex // held by one reader or writer
	once sync.Once
	done bool // guarded by mu
	mu   sync.Mutex
}

func newEnd(f *os.File) *end { return &end{f: f, turn: lock.New()} }

func (e *end) close() { e.once.Do(func() { _ = e.f.Close() }) }

// finish reports true on its first call.
func (e *end) finish() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := !e.done
	e.done = true
	return first
}

// interruptible runs do, of which ctx's end expires the deadline.
func (e *end) interruptible(ctx context.Context, do func() error) error {
	if err := e.turn.Lock(ctx); err != nil {
		return err
	}
	defer e.turn.Unlock()
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = e.f.SetDeadline(time.Unix(1, 0)) // fails only when closed, which interrupts as well
	})
	err := do()
	if !stop() {
		<-fired
		_ = e.f.SetDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// read returns no bytes and no error at the end.
func (e *end) read(ctx context.Context, n int) ([]byte, error) {
	buf := make([]byte, max(1, min(n, maxRead)))
	got := 0
	err := e.interruptible(ctx, func() (err error) {
		got, err = read(e.f, buf)
		return err
	})
	if got > 0 || isEOF(err) || errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return buf[:got], err
}

func (e *end) write(ctx context.Context, p []byte) (int, error) {
	n := 0
	err := e.interruptible(ctx, func() (err error) {
		n, err = e.f.Write(p)
		return err
	})
	switch {
	case n > 0:
		return n, nil // the caller sees the count and calls again with the rest
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO):
		return 0, fmt.Errorf("standard input is closed: %w", errdefs.ErrFailedPrecondition)
	}
	return n, err
}

func (e *end) resize(rows, cols uint16) error {
	rc, err := e.f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
