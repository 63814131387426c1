// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/guest"
)

// maxRead is what one Read call of the protocol asks for.
const maxRead = 32 << 10

// rpcReader is an io.ReadCloser over ReadStdout or ReadStderr. It has a context because io.Reader
// has none to pass.
type rpcReader struct {
	ctx      context.Context // see above
	cancel   context.CancelFunc
	call     func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
	process  Process
	terminal bool
	rest     []byte
	idle     *time.Timer // runs while no call is under way
	once     sync.Once
}

func (r *rpcReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.rest) == 0 {
		r.idle.Stop()
		defer r.idle.Reset(DrainGrace)
		res, err := r.call(r.ctx, &agent.ReadStreamRequest{
			ContainerId: r.process.Container, ExecId: r.process.Exec, Len: uint32(min(len(p), maxRead)),
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
	c := guest.Classify(err)
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
	ctx     context.Context // io.Writer has none to pass
	guest   Guest
	process Process
}

func (w *rpcWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		chunk := p[done:min(done+maxRead, len(p))]
		res, err := w.guest.WriteStdin(w.ctx, &agent.WriteStreamRequest{
			ContainerId: w.process.Container, ExecId: w.process.Exec, Data: chunk,
		})
		if err != nil {
			return done, guest.Classify(err)
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
	_, err := w.guest.CloseStdin(w.ctx, &agent.CloseStdinRequest{ContainerId: w.process.Container, ExecId: w.process.Exec})
	if err = guest.Classify(err); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
