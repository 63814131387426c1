// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stdio connects the standard streams of guest processes with the host: by byte streams
// that the host opened beforehand (Broker), or by Read and Write calls. A process has pipes or, with
// a terminal, the master side of a pseudo-terminal.
//
// Lifecycle of an IO: New makes the pipes; the child gets Files; Start (or Attach, for a terminal)
// begins copying; Exited is called when the process has ended; Close releases everything. Every
// byte that the process wrote reaches the host before the host sees the end of the stream.
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
)

// Output names one of the two outputs.
type Output int

// Outputs of a process. A terminal has only Stdout.
const (
	Stdout Output = iota
	Stderr
)

// Wiring says how a process's streams reach the host. With Streams set, a nil connection means
// that the host does not want the stream: the process gets /dev/null. Otherwise the streams are
// served by Read and Write.
//
// With OneOutput set, stderr is stdout: the process writes both into one pipe, so they reach the host in the order in
// which they were written.
//
// With Discard set, the host gets no output: the agent reads and drops it, so that the process never waits. The
// host's connections for it are closed.
type Wiring struct {
	Terminal              bool
	Streams               bool
	Discard               bool
	OneOutput             bool
	Stdin, Stdout, Stderr net.Conn
}

// IO is the standard streams of one process.
type IO struct {
	terminal bool
	streams  bool
	conns    [3]net.Conn // host side, in streams mode

	child [3]*os.File // ends of the process, closed by Start
	in    *end        // our end of stdin; nil when it is /dev/null
	outs  [2]*end     // our ends of stdout and stderr; nil likewise

	copiers sync.WaitGroup
	flushed chan struct{} // closed when every output has ended
	over    chan struct{} // closed by Close

	mu      sync.Mutex
	started bool // guarded by mu
	closed  bool // guarded by mu
	exited  bool // guarded by mu
	live    int  // guarded by mu; outputs that have not ended
}

// New makes the streams of one process and takes over the connections of w, also when it fails.
func New(w Wiring) (_ *IO, err error) {
	if w.Discard {
		w = w.discard()
	}
	s := &IO{
		terminal: w.Terminal, streams: w.Streams,
		conns:   [3]net.Conn{w.Stdin, w.Stdout, w.Stderr},
		flushed: make(chan struct{}), over: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if w.Terminal {
		return s, nil
	}
	for i := range s.child {
		if i == 2 && w.OneOutput {
			s.child[2] = s.child[1] // closing it a second time does nothing
			continue
		}
		if w.Streams && s.conns[i] == nil {
			if s.child[i], err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, fmt.Errorf("open standard stream %d: %w", i, err)
			}
			continue
		}
		ours, theirs, perr := pipe(i == 0)
		if perr != nil {
			return nil, fmt.Errorf("make pipe for standard stream %d: %w", i, perr)
		}
		s.child[i] = theirs
		if i == 0 {
			s.in = newEnd(ours)
		} else {
			s.outs[i-1] = newEnd(ours)
		}
	}
	return s, nil
}

// discard takes the connections for output away.
func (w Wiring) discard() Wiring {
	for _, c := range []*net.Conn{&w.Stdout, &w.Stderr} {
		if *c != nil {
			_ = (*c).Close() // nothing was written to it
			*c = nil
		}
	}
	w.Streams = true
	return w
}

// pipe makes a pipe of which only our end is non-blocking: the process must not notice.
func pipe(weWrite bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	mine, other := p[0], p[1]
	if weWrite {
		mine, other = p[1], p[0]
	} else {
		_, _ = unix.FcntlInt(uintptr(mine), unix.F_SETPIPE_SZ, outputPipe) // a smaller one is slower
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(mine), "pipe"), os.NewFile(uintptr(other), "pipe"), nil
}

// Files are the descriptors 0, 1 and 2 for the process, or nil with a terminal.
func (s *IO) Files() []*os.File {
	if s.terminal {
		return nil
	}
	return s.child[:]
}

// Start begins copying; the process has been started and holds its ends.
func (s *IO) Start() { s.start() }

// Attach gives the master side of the process's terminal and begins copying.
func (s *IO) Attach(master *os.File) error {
	fd := int(master.Fd()) // Fd sets blocking mode, so the next line must come after it
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(err, master.Close())
	}
	// One descriptor for each direction: closing the input must not end the output.
	in, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return errors.Join(err, master.Close())
	}
	out, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		unix.Close(in)
		return errors.Join(err, master.Close())
	}
	_ = master.Close()
	s.mu.Lock()
	s.in, s.outs[0] = newEnd(os.NewFile(uintptr(in), "tty")), newEnd(os.NewFile(uintptr(out), "tty"))
	s.mu.Unlock()
	s.start()
	return nil
}

func (s *IO) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return
	}
	s.started = true
	s.closeChildLocked()
	for _, o := range s.outs {
		if o != nil {
			s.live++
		}
	}
	if s.live == 0 {
		close(s.flushed)
	}
	if !s.streams {
		return
	}
	if s.in != nil && s.conns[0] != nil {
		s.copiers.Go(s.copyIn)
	}
	for i, o := range s.outs {
		if o != nil {
			s.copiers.Go(func() { s.copyOut(o, s.conns[i+1]) })
		}
	}
}

func (s *IO) closeChildLocked() {
	for i, f := range s.child {
		if f != nil {
			_ = f.Close()
			s.child[i] = nil
		}
	}
}

// copyIn moves stdin from the host to the process until either side ends.
func (s *IO) copyIn() {
	_, err := io.Copy(s.in.f, s.conns[0]) // straight out of the connection's buffers, if it can
	if s.terminal && err == nil {
		return // a terminal outlives the input; a hang-up would kill the session
	}
	s.in.close()
	if err != nil {
		_ = s.conns[0].Close()
	}
}

// copyOut moves one output to the host until its last writer is gone, then ends the stream.
func (s *IO) copyOut(o *end, conn net.Conn) {
	var err error
	switch {
	case conn == nil: // a terminal whose output nobody wants
		_, _ = transfer(io.Discard, o.f)
	case s.terminal:
		_, err = transfer(conn, o.f)
	default:
		err = forward(conn, o.f)
	}
	if conn != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = drain(conn, o.f)
		}
		_ = conn.Close()
	}
	o.close()
	s.ended(o)
}

// ended notes that an output has reached its end.
func (s *IO) ended(o *end) {
	if !o.finish() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live--; s.live == 0 {
		close(s.flushed)
	}
}

// Flushed is closed when every output has ended and was handed over.
func (s *IO) Flushed() <-chan struct{} { return s.flushed }

// Closed is closed by Close.
func (s *IO) Closed() <-chan struct{} { return s.over }

// Streamed reports whether the streams are byte streams, not served by Read and Write.
func (s *IO) Streamed() bool { return s.streams }

// Exited is called once when the process has ended: input is over, and an output that a surviving
// grandchild keeps open ends when the host drops it.
func (s *IO) Exited() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exited || s.closed {
		return
	}
	s.exited = true
	if s.in != nil {
		s.in.close()
	}
	if !s.streams {
		return
	}
	if c := s.conns[0]; c != nil {
		_ = c.Close()
	}
	if !s.started {
		return
	}
	for i, o := range s.outs {
		if o != nil && s.conns[i+1] != nil {
			s.copiers.Go(func() { watchPeer(s.conns[i+1], o) })
		}
	}
}

// watchPeer ends an output when the host has closed its side of the stream. Output in the pipe is still
// delivered, but a grandchild that holds the pipe open does not delay the end. It returns with the stream
// at the latest.
func watchPeer(c net.Conn, o *end) {
	_, _ = io.Copy(io.Discard, c) // the host sends nothing on an output
	_ = o.f.SetReadDeadline(time.Unix(1, 0))
}

// Close ends every stream at once, and returns when all copying has stopped.
func (s *IO) Close() {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	s.closeChildLocked()
	if !already {
		close(s.over)
		if s.in != nil {
			s.in.close()
		}
		for _, o := range s.outs {
			if o != nil {
				o.close()
			}
		}
		closeAll(s.conns[:])
	}
	s.mu.Unlock()
	s.copiers.Wait()
}

// Read returns up to n bytes of an output; no bytes means its end.
func (s *IO) Read(ctx context.Context, which Output, n int) ([]byte, error) {
	o, err := s.output(which)
	if o == nil || err != nil {
		return nil, err
	}
	b, err := o.read(ctx, n)
	if err == nil && len(b) == 0 {
		o.close()
		s.ended(o)
	}
	return b, err
}

func (s *IO) output(which Output) (*end, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams && s.conns[which+1] != nil {
		return nil, fmt.Errorf("output is connected to a stream: %w", errdefs.ErrFailedPrecondition)
	}
	if !s.started {
		return nil, fmt.Errorf("process has no output yet: %w", errdefs.ErrFailedPrecondition)
	}
	return s.outs[which], nil
}

// Write writes p to the process's input. It blocks while the process does not read.
func (s *IO) Write(ctx context.Context, p []byte) (int, error) {
	s.mu.Lock()
	in, taken := s.in, s.streams && s.conns[0] != nil
	s.mu.Unlock()
	if taken || in == nil {
		return 0, fmt.Errorf("input is not served by calls: %w", errdefs.ErrFailedPrecondition)
	}
	return in.write(ctx, p)
}

// CloseStdin ends the process's input. A terminal stays open.
func (s *IO) CloseStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil && !s.terminal {
		s.in.close()
	}
}

// Resize sets the size of the terminal.
func (s *IO) Resize(rows, cols uint16) error {
	s.mu.Lock()
	tty := s.outs[0]
	s.mu.Unlock()
	if !s.terminal || tty == nil {
		return fmt.Errorf("process has no terminal: %w", errdefs.ErrUnavailable)
	}
	return tty.resize(rows, cols)
}
