// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
)

// maxRead is what one Read call of the protocol asks for.
const maxRead = 32 << 10

// wanted says which streams a process shall have.
type wanted struct{ stdin, stdout, stderr, terminal bool }

func wants(terminal, stdin, stdout, stderr bool) wanted {
	return wanted{stdin, stdout, stderr && !terminal, terminal}
}

// ports names a process's byte streams in a request; 0 is none.
type ports struct{ stdin, stdout, stderr uint32 }

// pipes are the host's ends of a process's streams.
type pipes struct {
	Streams
	outs      []*output // outputs to be drained before the exit is published
	in        *input
	discarded []*output // outputs without a client; they are drained, since a full pipe blocks the process
	emptyIn   *input    // an input without a client; it is closed, so that the process reads EOF
}

// close ends all streams. Idempotent.
func (s *pipes) close() error {
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

// begin serves the streams without a client, once the process exists: outputs are drained, since an unread pipe blocks
// its writer, and the input is closed, since an open one blocks its reader.
func (p *Pod) begin(s *pipes) {
	for _, o := range s.discarded {
		p.life.spawn(func(context.Context) { _, _ = io.Copy(io.Discard, o) }) // there is no client to report an error to
	}
	if s.emptyIn != nil {
		p.life.spawn(func(context.Context) {
			if err := s.emptyIn.Close(); err != nil {
				p.log.Debug("end an input that nobody has", "error", err)
			}
		})
	}
}

// drained waits until every output was read to its end, or until stop is closed.
func (s *pipes) drained(stop <-chan struct{}) {
	for _, o := range s.outs {
		select {
		case <-o.ended:
		case <-stop:
			return
		}
	}
}

// read waits, where outputs are read by calls, until each has ended, or one is not read any more, or the process was
// killed a while ago. An agent without byte streams forgets a process that was waited for, with the output that nobody
// has read.
func (s *pipes) read(ctx context.Context, killed <-chan struct{}) {
	var enough <-chan time.Time
	for i := 0; i < len(s.outs) && s.outs[i].stalled != nil; {
		select {
		case <-s.outs[i].ended:
			i++
		case <-killed:
			t := time.NewTimer(drainGrace)
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

func newPipes(in *input, stdout, stderr *output) *pipes {
	p := &pipes{in: in}
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
	stalled chan struct{} // of an output that is read by calls: closed when no call has read for drainGrace
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

// openStreams connects the streams that a process wants, before the guest is asked to make it. ctx
// bounds the connecting only; life the calls of an agent without byte streams.
func (p *Pod) openStreams(ctx, life context.Context, w wanted, container, exec string) (*pipes, ports, error) {
	if !p.agent.streams {
		return p.rpcStreams(life, w, container, exec), ports{}, nil
	}
	var s ports
	nobody := !w.stdin && !w.stdout && !w.stderr
	// An agent that is given streams puts /dev/null in the place of those that are missing; one
	// that is given none expects Read and Write calls.
	w.stdout = w.stdout || nobody
	var conns [3]net.Conn
	g, gctx := errgroup.WithContext(ctx) // each connection takes some round trips
	for i, o := range []struct {
		wanted bool
		port   *uint32
	}{{w.stdin, &s.stdin}, {w.stdout, &s.stdout}, {w.stderr, &s.stderr}} {
		if o.wanted {
			g.Go(func() (err error) {
				conns[i], *o.port, err = p.dialStream(gctx)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		err = fmt.Errorf("connect streams of %s: %w", processName(container, exec), err)
		for _, c := range conns {
			if c != nil {
				err = errors.Join(err, ignoreClosed(c.Close()))
			}
		}
		return nil, ports{}, err
	}
	var in *input
	if conns[0] != nil {
		in = connInput(conns[0])
	}
	if nobody {
		o := connOutput(conns[1])
		return &pipes{outs: []*output{o}, discarded: []*output{o}}, s, nil
	}
	return newPipes(in, connOutput(conns[1]), connOutput(conns[2])), s, nil
}

func connOutput(c net.Conn) *output {
	if c == nil {
		return nil
	}
	return newOutput(c)
}

// dialStream opens a byte stream with a number that no other stream of the VM has.
func (p *Pod) dialStream(ctx context.Context) (net.Conn, uint32, error) {
	n := p.streamNumber.Add(1)
	conn, err := p.vm.Dial(ctx, contract.PortStreams)
	if errors.Is(err, portmux.ErrFull) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	if err != nil {
		return nil, 0, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // ends the handshake
	err = announce(conn, n)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("announce stream %d: %w", n, err), ignoreClosed(conn.Close()))
	}
	return conn, n, nil
}

// announce tells the agent the stream's number and reads its answer: "stream <n>\n" and "ok\n", or why not.
func announce(conn io.ReadWriter, n uint32) error {
	if _, err := fmt.Fprintf(conn, contract.StreamWord+" %d\n", n); err != nil {
		return err
	}
	answer, err := readLine(conn)
	switch {
	case err != nil:
		return err
	case answer == contract.GreetingFull:
		return fmt.Errorf("too many streams wait in the guest: %w", errdefs.ErrResourceExhausted)
	case answer != contract.GreetingOK:
		return fmt.Errorf("the agent answered %q instead of %s", answer, contract.GreetingOK)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// rpcStreams are streams over the protocol's own calls, for agents that have nothing better.
func (p *Pod) rpcStreams(life context.Context, w wanted, container, exec string) *pipes {
	wr := &rpcWriter{life, p.agent, container, exec}
	in := &input{w: wr, end: wr.Close}
	reader := func(call func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)) *output {
		ctx, cancel := context.WithCancel(life)
		r := &rpcReader{ctx: ctx, cancel: cancel, call: call, container: container, exec: exec, terminal: w.terminal}
		o := newOutput(r)
		o.stalled = make(chan struct{})
		r.idle = time.AfterFunc(drainGrace, func() { r.once.Do(func() { close(o.stalled) }) })
		return o
	}
	stdout, stderr := reader(p.agent.ReadStdout), reader(p.agent.ReadStderr)
	s := &pipes{outs: []*output{stdout, stderr}}
	if w.terminal {
		s.outs = s.outs[:1]
	}
	if w.stdin {
		s.in, s.Stdin = in, in
	} else if !w.terminal { // the end of a terminal's input would hang it up
		s.emptyIn = in
	}
	for i, o := range s.outs {
		switch {
		case i == 0 && w.stdout:
			s.Stdout = o
		case i == 1 && w.stderr:
			s.Stderr = o
		default:
			s.discarded = append(s.discarded, o)
		}
	}
	return s
}

// rpcReader is an io.ReadCloser over ReadStdout or ReadStderr. It has a context because io.Reader
// has none to pass.
type rpcReader struct {
	ctx             context.Context // see above
	cancel          context.CancelFunc
	call            func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
	container, exec string
	terminal        bool
	rest            []byte
	idle            *time.Timer // runs while no call is under way
	once            sync.Once
}

func (r *rpcReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.rest) == 0 {
		r.idle.Stop()
		defer r.idle.Reset(drainGrace)
		res, err := r.call(r.ctx, &agent.ReadStreamRequest{
			ContainerId: r.container, ExecId: r.exec, Len: uint32(min(len(p), maxRead)),
		})
		if err != nil {
			return 0, readError(err, r.terminal)
		}
		if r.rest = res.GetData(); len(r.rest) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// readError turns the agent's ways of saying "no more" into io.EOF. A terminal's master reads EIO once the last
// process has closed the other side.
func readError(err error, terminal bool) error {
	c := classify(err)
	if terminal && endsTerminal(strings.ToLower(c.Error())) {
		return io.EOF
	}
	if errdefs.IsNotFound(c) || errors.Is(c, context.Canceled) || strings.Contains(strings.ToLower(c.Error()), "eof") {
		return io.EOF
	}
	return c
}

// endsTerminal knows EIO as Go, Rust's nix and its standard library write it.
func endsTerminal(text string) bool {
	for _, words := range []string{"input/output error", "eio: i/o error", "(os error 5)"} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return strings.HasSuffix(text, "eio")
}

func (r *rpcReader) Close() error {
	r.idle.Stop()
	r.cancel()
	return nil
}

// rpcWriter is an io.WriteCloser over WriteStdin and CloseStdin.
type rpcWriter struct {
	ctx             context.Context // io.Writer has none to pass
	guest           streamGuest
	container, exec string
}

func (w *rpcWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		chunk := p[done:min(done+maxRead, len(p))]
		res, err := w.guest.WriteStdin(w.ctx, &agent.WriteStreamRequest{
			ContainerId: w.container,
			ExecId:      w.exec, Data: chunk,
		})
		if err != nil {
			return done, classify(err)
		}
		if n := int(res.GetLen()); n == 0 || n > len(chunk) {
			return done, io.ErrShortWrite
		} else {
			done += n
		}
	}
	return done, nil
}

func (w *rpcWriter) Close() error {
	_, err := w.guest.CloseStdin(w.ctx, &agent.CloseStdinRequest{ContainerId: w.container, ExecId: w.exec})
	if err = classify(err); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
