// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stream connects the standard streams of a process in the guest with the host.
//
// Open makes a Set before the guest is asked to make the process, so that no output is lost; Serve begins once the
// process exists. An agent of ours takes a connection for each stream. An agent of Kata's is read and written by
// calls, which end with the life of the pod. Either way the caller gets Streams, and a Set knows when the outputs
// have been read to their ends: an exit is published after them.
//
// Streams that no client wants are served here: outputs are drained and inputs closed, because a process blocks on a
// full pipe and on an open input.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/guest"
)

// Guest is the agent's side of streams: connections, or calls where it takes none.
type Guest interface {
	Features() guest.Features
	// DialStream opens a byte stream; the number names it in a request.
	DialStream(ctx context.Context) (net.Conn, uint32, error)
	WriteStdin(context.Context, *agent.WriteStreamRequest) (*agent.WriteStreamResponse, error)
	ReadStdout(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
	ReadStderr(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
	CloseStdin(context.Context, *agent.CloseStdinRequest) (*emptypb.Empty, error)
}

// DrainGrace is how long the exit of a process is held back while its output does not end: a child may hold the pipe
// open, or the client does not read.
const DrainGrace = 2 * time.Second

// Streams are the host's ends of a process's streams, nil where none was asked for. Closing Stdin
// is the end of the process's input. With a terminal, Stdout carries everything.
type Streams struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// Process names the process that streams belong to. Exec is empty for a container's first process.
type Process struct{ Container, Exec string }

// String names the process as errors do.
func (p Process) String() string {
	if p.Exec == "" {
		return "container " + p.Container
	}
	return "process " + p.Exec + " of container " + p.Container
}

// Wanted says which streams a process shall have. With a terminal, Stdout carries the errors too. With OneOutput both
// outputs go to one place: where the guest can do it, Stdout carries both, in the order in which they were written, and
// there is no Stderr.
type Wanted struct{ Stdin, Stdout, Stderr, Terminal, OneOutput bool }

// Ports names a process's byte streams in a request; 0 is none.
type Ports struct{ Stdin, Stdout, Stderr uint32 }

// Set is the host's ends of a process's streams.
type Set struct {
	Streams
	outs      []*output // outputs to be drained before the exit is published
	in        *input
	discarded []*output // outputs without a client; they are drained, since a full pipe blocks the process
	emptyIn   *input    // an input without a client; it is closed, so that the process reads EOF
}

// Close ends all streams. Idempotent.
func (s *Set) Close() error {
	var errs []error
	for _, in := range []*input{s.in, s.emptyIn} {
		if in != nil {
			errs = append(errs, in.release())
		}
	}
	for _, o := range s.outs {
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}

// Serve serves the streams without a client, once the process exists: outputs are drained, since an unread pipe blocks
// its writer, and the input is closed, since an open one blocks its reader. spawn starts a goroutine of the pod.
func (s *Set) Serve(spawn func(func(context.Context)) bool, log *slog.Logger) {
	for _, o := range s.discarded {
		spawn(func(context.Context) { _, _ = io.Copy(io.Discard, o) }) // there is no client to report an error to
	}
	if s.emptyIn != nil {
		spawn(func(context.Context) {
			if err := s.emptyIn.Close(); err != nil {
				log.Debug("end an input that nobody has", "error", err)
			}
		})
	}
}

// Drained waits until every output was read to its end, or until stop is closed.
func (s *Set) Drained(stop <-chan struct{}) {
	for _, o := range s.outs {
		select {
		case <-o.ended:
		case <-stop:
			return
		}
	}
}

// AwaitRead waits, where outputs are read by calls, until each has ended, or one is not read any more, or the process
// was killed a while ago. An agent without byte streams forgets a process that was waited for, with the output that
// nobody has read.
func (s *Set) AwaitRead(ctx context.Context, killed <-chan struct{}) {
	var enough <-chan time.Time
	for i := 0; i < len(s.outs) && s.outs[i].stalled != nil; {
		select {
		case <-s.outs[i].ended:
			i++
		case <-killed:
			t := time.NewTimer(DrainGrace)
			defer t.Stop()
			killed, enough = nil, t.C
		case <-s.outs[i].stalled:
			return
		case <-enough:
			return
		case <-ctx.Done():
			return
		}
	}
}

func newSet(in *input, stdout, stderr *output) *Set {
	p := &Set{in: in}
	if in != nil {
		p.Stdin = in
	}
	if stdout != nil {
		p.Stdout = stdout
		p.outs = append(p.outs, stdout)
	}
	if stderr != nil {
		p.Stderr = stderr
		p.outs = append(p.outs, stderr)
	}
	return p
}

// output is a stream from the guest; ended is closed at its end.
type output struct {
	r       io.ReadCloser
	once    sync.Once
	ended   chan struct{}
	stalled chan struct{} // of an output that is read by calls: closed when no call has read for DrainGrace
}

func newOutput(r io.ReadCloser) *output { return &output{r: r, ended: make(chan struct{})} }

// Read reads from the guest.
func (o *output) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if err != nil {
		o.end()
	}
	return n, err
}

// Close gives the stream up.
func (o *output) Close() error {
	o.end()
	return ignoreClosed(o.r.Close())
}

func (o *output) end() { o.once.Do(func() { close(o.ended) }) }

// input is a stream to the guest. Close is the end of input; release frees it.
type input struct {
	w    io.Writer
	end  func() error // tells the guest
	free func() error // may be nil
	once sync.Once
	err  error
}

func connInput(c net.Conn) *input {
	in := &input{w: c, end: c.Close, free: c.Close}
	if d, ok := c.(interface{ DropReads() }); ok { // an input has nothing to say
		d.DropReads()
	}
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		in.end = h.CloseWrite
	}
	return in
}

// Write writes to the guest.
func (i *input) Write(p []byte) (int, error) { return i.w.Write(p) }

// Close tells the process that no more input comes.
func (i *input) Close() error {
	i.once.Do(func() { i.err = i.end() })
	return i.err
}

func (i *input) release() error {
	i.once.Do(func() {})
	if i.free == nil {
		return nil
	}
	return ignoreClosed(i.free())
}

// Open connects the streams that a process wants, before the guest is asked to make it. ctx
// bounds the connecting only; life the calls of an agent without byte streams.
func Open(ctx, life context.Context, g Guest, w Wanted, p Process) (*Set, Ports, error) {
	w.Stderr = w.Stderr && !w.Terminal
	if !g.Features().Streams {
		return byCalls(life, g, w, p), Ports{}, nil
	}
	one := w.OneOutput && w.Stdout && w.Stderr && g.Features().OneOutput
	w.Stderr = w.Stderr && !one
	var s Ports
	nobody := !w.Stdin && !w.Stdout && !w.Stderr
	// An agent that is given streams puts /dev/null in the place of those that are missing; one
	// that is given none expects Read and Write calls.
	w.Stdout = w.Stdout || nobody
	var conns [3]net.Conn
	group, gctx := errgroup.WithContext(ctx) // each connection takes some round trips
	for i, o := range []struct {
		wanted bool
		port   *uint32
	}{{w.Stdin, &s.Stdin}, {w.Stdout, &s.Stdout}, {w.Stderr, &s.Stderr}} {
		if o.wanted {
			group.Go(func() (err error) {
				conns[i], *o.port, err = g.DialStream(gctx)
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		err = fmt.Errorf("connect streams of %s: %w", p, err)
		for _, c := range conns {
			if c != nil {
				err = errors.Join(err, ignoreClosed(c.Close()))
			}
		}
		return nil, Ports{}, err
	}
	if one {
		s.Stderr = s.Stdout
	}
	var in *input
	if conns[0] != nil {
		in = connInput(conns[0])
	}
	if nobody {
		o := connOutput(conns[1])
		return &Set{outs: []*output{o}, discarded: []*output{o}}, s, nil
	}
	return newSet(in, connOutput(conns[1]), connOutput(conns[2])), s, nil
}

func connOutput(c net.Conn) *output {
	if c == nil {
		return nil
	}
	return newOutput(c)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// byCalls makes streams over the protocol's own calls, for agents that have nothing better.
func byCalls(life context.Context, g Guest, w Wanted, p Process) *Set {
	wr := &rpcWriter{life, g, p}
	in := &input{w: wr, end: wr.Close}
	reader := func(call func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)) *output {
		ctx, cancel := context.WithCancel(life)
		r := &rpcReader{ctx: ctx, cancel: cancel, call: call, process: p, terminal: w.Terminal}
		o := newOutput(r)
		o.stalled = make(chan struct{})
		r.idle = time.AfterFunc(DrainGrace, func() { r.once.Do(func() { close(o.stalled) }) })
		return o
	}
	stdout, stderr := reader(g.ReadStdout), reader(g.ReadStderr)
	s := &Set{outs: []*output{stdout, stderr}}
	if w.Terminal {
		s.outs = s.outs[:1]
	}
	if w.Stdin {
		s.in, s.Stdin = in, in
	} else if !w.Terminal { // the end of a terminal's input would hang it up
		s.emptyIn = in
	}
	for i, o := range s.outs {
		switch {
		case i == 0 && w.Stdout:
			s.Stdout = o
		case i == 1 && w.Stderr:
			s.Stderr = o
		default:
			s.discarded = append(s.discarded, o)
		}
	}
	return s
}
