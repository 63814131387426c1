// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stdio relays a process's byte streams to and from the places that containerd names:
// FIFOs, files and binary loggers.
//
// A FIFO is held open for reading and writing while the process lives, so that a client may leave and
// another may come: output then waits in the pipe, and input does not end. When the process has ended
// (Drain) or its input was closed (CloseStdin) the relay keeps one end only. Then a write without a
// reader fails with EPIPE, so an absent reader loses its output and never delays the exit.
//
// A Relay lives from Open to Close. Package task knows the process and decides when to drain.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	bufferSize = 64 << 10
	// idleGrace is how long an ended process's output may be idle before its exit is published without EOF: a
	// grandchild may hold the pipe open. slowGrace is the same while a connected reader does not read, since the
	// remaining output would be lost. Both are counted in ticks, not wall time: a suspended host does not use up the
	// grace.
	idleGrace = 2 * time.Second
	slowGrace = 10 * time.Second
	idleTick  = 200 * time.Millisecond
	// drainLimit bounds the whole wait, for output that flows but never ends.
	drainLimit = 30 * time.Second
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// Config names the three places as containerd does: a path, or a file:// or binary:// URI;
// empty for none.
type Config struct {
	Namespace, ID         string // passed to binary loggers
	Stdin, Stdout, Stderr string
	Terminal              bool // stderr is part of stdout
	Log                   *slog.Logger
}

// Wants reports which streams have a place.
func (c Config) Wants() (stdin, stdout, stderr bool) {
	return c.Stdin != "", c.Stdout != "", c.Stderr != "" && !c.Terminal
}

// OneFile reports whether stdout and stderr go to the same file. Stdout may then carry both, in the order in
// which the process wrote them. Two streams, as FIFOs and loggers have them, do not keep that order.
func (c Config) OneFile() bool {
	_, stdout, stderr := c.Wants()
	t, err := parseTarget(c.Stdout)
	return stdout && stderr && c.Stdout == c.Stderr && err == nil && t.kind == kindFile
}

// Streams are the process's ends. A stream without a place is nil.
type Streams struct {
	Stdin          io.WriteCloser // Close means end of input
	Stdout, Stderr io.ReadCloser
}

// Relay is the open places of one process and, after Start, the goroutines between them and the
// process's streams.
type Relay struct {
	log            *slog.Logger
	stdin          *source
	stdout, stderr sink
	logger         *logger // the binary logger behind stdout and stderr, or nil

	moved   atomic.Int64  // output bytes so far: progress
	writing atomic.Int32  // outputs whose reader has to take something
	drained chan struct{} // all output was written
	outputs sync.WaitGroup
	input   sync.WaitGroup

	mu      sync.Mutex
	streams Streams // guarded by mu
	started bool    // guarded by mu
	closed  bool    // guarded by mu
}

// Open opens all places. On error nothing stays open.
func Open(ctx context.Context, cfg Config) (_ *Relay, err error) {
	r := &Relay{log: cfg.Log, drained: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = r.closePlaces() // err says why nothing will use them
		}
	}()
	wantIn, wantOut, wantErr := cfg.Wants()
	if wantIn {
		if r.stdin, err = openSource(cfg.Stdin); err != nil {
			return nil, fmt.Errorf("open stdin of %s: %w", cfg.ID, err)
		}
	}
	if err := r.openOutputs(ctx, cfg, wantOut, wantErr); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Relay) openOutputs(ctx context.Context, cfg Config, wantOut, wantErr bool) error {
	var out, errs target
	var err error
	if wantOut {
		if out, err = parseTarget(cfg.Stdout); err != nil {
			return fmt.Errorf("stdout of %s: %w", cfg.ID, err)
		}
	}
	if wantErr {
		if errs, err = parseTarget(cfg.Stderr); err != nil {
			return fmt.Errorf("stderr of %s: %w", cfg.ID, err)
		}
	}
	if out.kind == kindBinary || errs.kind == kindBinary {
		if wantOut && wantErr && cfg.Stdout != cfg.Stderr {
			return fmt.Errorf("stdout and stderr of %s name different binary loggers: %w", cfg.ID, syscall.EINVAL)
		}
		t := out
		if !wantOut {
			t = errs
		}
		if r.logger, err = startLogger(ctx, t, cfg); err != nil {
			return fmt.Errorf("log binary of %s: %w", cfg.ID, err)
		}
		if wantOut {
			r.stdout = r.logger.stdout
		}
		if wantErr {
			r.stderr = r.logger.stderr
		}
		return nil
	}
	if wantOut {
		if r.stdout, err = openSink(out); err != nil {
			return fmt.Errorf("open stdout of %s: %w", cfg.ID, err)
		}
	}
	if wantErr {
		if r.stderr, err = openSink(errs); err != nil {
			return fmt.Errorf("open stderr of %s: %w", cfg.ID, err)
		}
	}
	return nil
}

// Start begins relaying. The relay owns the streams from here on and closes them.
func (r *Relay) Start(s Streams) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.started {
		closeStreams(s)
		return
	}
	r.started, r.streams = true, s
	if s.Stdin != nil {
		if r.stdin == nil {
			_ = s.Stdin.Close() // no place to read from: end of input at once
		} else {
			r.input.Go(func() { r.pumpIn(s.Stdin) })
		}
	}
	for _, o := range []struct {
		from io.ReadCloser
		to   sink
	}{{s.Stdout, r.stdout}, {s.Stderr, r.stderr}} {
		if o.from != nil {
			r.outputs.Go(func() { r.pumpOut(o.from, o.to) })
		}
	}
	go func() { // ends when the outputs do; Close waits for it through drained
		r.outputs.Wait()
		close(r.drained)
	}()
}

func (r *Relay) pumpIn(to io.WriteCloser) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err := io.CopyBuffer(onlyWriter{to}, onlyReader{r.stdin}, *buf)
	if err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, syscall.EPIPE) {
		r.log.Debug("stdin relay ended", "error", err)
	}
	_ = to.Close() // end of input; a process that is gone needs none
}

func (r *Relay) pumpOut(from io.ReadCloser, to sink) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	defer func() { _ = from.Close() }() // read to its end, or given up
	if to != nil {
		defer func() { _ = to.Close() }() // the reader's end of output, before any Delete
	}
	lost := to == nil
	for {
		n, err := from.Read(*buf)
		if n > 0 && !lost {
			r.writing.Add(1)
			_, werr := to.Write((*buf)[:n])
			r.writing.Add(-1)
			if werr != nil {
				// The process must not block on a lost reader: read on and drop.
				lost = true
				if !errors.Is(werr, os.ErrClosed) && !errors.Is(werr, syscall.EPIPE) {
					r.log.Warn("output lost", "error", werr)
				}
			}
		}
		r.moved.Add(int64(n))
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				r.log.Warn("output stream ended early", "error", err)
			}
			return
		}
	}
}

// CloseStdin ends the input once everything that clients have written so far was read.
func (r *Relay) CloseStdin() error {
	if r == nil || r.stdin == nil {
		return nil
	}
	return r.stdin.finish()
}

// ProcessStarts is called when the process begins to run; see source.settle.
func (r *Relay) ProcessStarts() {
	if r == nil || r.stdin == nil {
		return
	}
	if err := r.stdin.settle(); err != nil {
		r.log.Warn("stdin of a client that left may not end", "error", err)
	}
}

// Drain is called when the process has ended. It returns when all output was written, or when
// waiting longer makes no sense: the output stands still, the limit is over, or ctx ends.
func (r *Relay) Drain(ctx context.Context) {
	if r == nil || !r.isStarted() {
		return
	}
	for _, s := range []sink{r.stdout, r.stderr} {
		if s != nil {
			s.peerMatters()
		}
	}
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	tick := time.NewTicker(idleTick)
	defer tick.Stop()
	last := r.moved.Load()
	for still := time.Duration(0); ; {
		select {
		case <-r.drained:
			return
		case <-ctx.Done():
			return
		case <-limit.C:
			r.log.Warn("output still flows after the exit: exit published first")
			return
		case <-tick.C:
			still += idleTick
			if now := r.moved.Load(); now != last {
				last, still = now, 0
			}
			if still < idleGrace || still < slowGrace && r.writing.Load() > 0 {
				continue
			}
			r.log.Warn("output stands still after the exit: exit published first", "unread", r.writing.Load() > 0)
			return
		}
	}
}

// Drained is closed when all output was written or given up; at once for a relay that has not started.
func (r *Relay) Drained() <-chan struct{} {
	if r == nil || !r.isStarted() {
		none := make(chan struct{})
		close(none)
		return none
	}
	return r.drained
}

func (r *Relay) isStarted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started
}

// Close ends all goroutines and closes every stream, place and logger. It may be called twice.
func (r *Relay) Close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	started, streams := r.started, r.streams
	r.mu.Unlock()
	closeStreams(streams)
	err := r.closePlaces()
	if started {
		<-r.drained
		r.input.Wait()
	}
	if r.logger != nil {
		err = errors.Join(err, r.logger.wait())
	}
	return err
}

func (r *Relay) closePlaces() error {
	var errs []error
	if r.stdin != nil {
		errs = append(errs, r.stdin.Close())
	}
	for _, s := range []sink{r.stdout, r.stderr} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

func closeStreams(s Streams) {
	if s.Stdin != nil {
		_ = s.Stdin.Close() // may be closed already
	}
	for _, c := range []io.Closer{s.Stdout, s.Stderr} {
		if c != nil {
			_ = c.Close() // likewise
		}
	}
}

// onlyReader and onlyWriter keep io.CopyBuffer from choosing a way of its own around the pooled
// buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
