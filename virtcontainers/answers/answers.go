// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package answers stands between the agent protocol's client and the guest, which is not trusted. It lets through
// answers to requests that were made, each once, and of a bounded size. The first message that the protocol does not
// allow ends the connection, because the client behind it would write a log line for each, without a limit.
//
// A Conn lives as long as the connection that it wraps. Its user interprets the answers.
package answers

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/containerd/ttrpc"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/internal/portmux"
	"github.com/coco-shim/coco/internal/words"
)

// ErrProtocol says that the guest sent what the agent protocol does not allow.
var ErrProtocol = errors.New("the guest broke the agent's protocol")

// A message of ttrpc (PROTOCOL.md of containerd/ttrpc): length, stream, type and flags, big endian; then the body.
const (
	headerSize   = 10
	typeRequest  = 1
	typeResponse = 2
	maxMessage   = 4 << 20
)

// Bounds on answers, by the method that was called. A longer answer is dropped, and the call fails.
const (
	maxAnswer = 32 << 10 // most answers are empty, or an error
	maxMethod = 256      // bytes of a request in which its method is looked for
)

var wideAnswers = map[string]uint32{
	"GetMetrics": 256 << 10, "StatsContainer": 256 << 10, "GetGuestDetails": 256 << 10, "GetDiagnosticData": 256 << 10,
	"ReadStdout": 256 << 10, "ReadStderr": 256 << 10,
	"UpdateInterface": 1 << 20, "UpdateRoutes": 1 << 20, // they repeat the request
}

// asked is a request without an answer.
type asked struct {
	method string
	most   uint32
}

// Conn is the host's end of the connection with the agent.
type Conn struct {
	net.Conn
	heard atomic.Uint64 // answers so far

	in   *bufio.Reader // of the one reader
	out  []byte        // of the one reader: to be read before anything else
	left uint32        // of the one reader: bytes of an answer's body

	written request // of the one writer

	mu   sync.Mutex
	open map[uint32]asked // guarded by mu; by stream
	err  error            // guarded by mu; why reading has ended
}

// request follows the bytes that are written.
type request struct {
	header [headerSize]byte
	n      int // bytes of the header
	stream uint32
	left   uint32 // bytes of the body
	start  []byte // its first bytes; nil once the method is known
}

// New wraps a connection, which it then owns.
func New(conn net.Conn) *Conn {
	return &Conn{Conn: conn, in: bufio.NewReader(conn), open: map[uint32]asked{}}
}

// Heard counts the answers.
func (c *Conn) Heard() uint64 { return c.heard.Load() }

// Err wraps ErrProtocol and names the guest's violation. It is nil while the connection lives and after an orderly end.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Read reads answers to requests.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		switch {
		case len(p) == 0:
			return 0, nil
		case len(c.out) > 0:
			n := copy(p, c.out)
			c.out = c.out[n:]
			return n, nil
		case c.left > 0:
			n, err := c.in.Read(p[:min(len(p), int(c.left))])
			c.left -= uint32(n) //nolint:gosec // at most left
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
		if err := c.next(); err != nil {
			return 0, c.fail(err)
		}
	}
}

// fail records the guest's violation of the protocol and closes the connection.
func (c *Conn) fail(err error) error {
	if errors.Is(err, portmux.ErrProtocol) { // below us
		err = fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if errors.Is(err, ErrProtocol) {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		_ = c.Close() // nobody reads it any more
	}
	return err
}

// next reads the header of an answer.
func (c *Conn) next() error {
	var h [headerSize]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return err
	}
	length, stream := binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint32(h[4:])
	if h[8] != typeResponse {
		return fmt.Errorf("%w: a message of type %d", ErrProtocol, h[8])
	}
	if length > maxMessage {
		return fmt.Errorf("%w: a message of %d bytes", ErrProtocol, length)
	}
	c.mu.Lock()
	a, ok := c.open[stream]
	delete(c.open, stream)
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: an answer to request %d, which was not made or was answered before", ErrProtocol, stream)
	}
	c.heard.Add(1)
	if length <= a.most {
		c.out, c.left = h[:], length
		return nil
	}
	return c.replace(h[:], a, length)
}

// replace drops a long answer and says so in its place.
func (c *Conn) replace(header []byte, a asked, length uint32) error {
	if _, err := c.in.Discard(int(length)); err != nil {
		return err
	}
	body, err := proto.Marshal(&ttrpc.Response{Status: &spb.Status{
		Code:    int32(codes.ResourceExhausted),
		Message: fmt.Sprintf("the answer to %s has %d bytes, at most %d are read", a.method, length, a.most),
	}})
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	binary.BigEndian.PutUint32(header, uint32(len(body))) //nolint:gosec // a sentence
	c.out = append(header, body...)
	return nil
}

// Write writes requests. Each is known before its last byte is sent.
func (c *Conn) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		rest = rest[c.follow(rest):]
	}
	return c.Conn.Write(p)
}

// follow parses the requests in p as they are written and returns how many bytes it has consumed.
func (c *Conn) follow(p []byte) int {
	w := &c.written
	if w.left == 0 {
		n := copy(w.header[w.n:], p)
		if w.n += n; w.n == headerSize {
			w.n, w.left, w.stream = 0, binary.BigEndian.Uint32(w.header[:]), binary.BigEndian.Uint32(w.header[4:])
			w.start = []byte{}
			if w.header[8] == typeRequest {
				c.ask("a call", w.stream)
			}
		}
		return n
	}
	n := min(len(p), int(w.left))
	w.left -= uint32(n) //nolint:gosec // at most left
	if w.start == nil || w.header[8] != typeRequest {
		return n
	}
	w.start = append(w.start, p[:min(n, maxMethod-len(w.start))]...)
	if w.left == 0 || len(w.start) == maxMethod {
		if m := method(w.start); m != "" {
			c.ask(m, w.stream)
		}
		w.start = nil
	}
	return n
}

func (c *Conn) ask(method string, stream uint32) {
	most := uint32(maxAnswer)
	if wide := wideAnswers[method]; wide != 0 {
		most = wide
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[stream] = asked{method, most}
}

// method reads the second field of a ttrpc request, which follows the service.
func method(b []byte) string {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.BytesType {
			return ""
		}
		v, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return ""
		}
		if num == 2 {
			return string(v)
		}
		b = b[n+m:]
	}
	return ""
}

// Clean is a ttrpc client interceptor. It makes the texts of the guest's errors bounded and printable. It also returns
// when ctx ends while the guest does not read requests: the ttrpc client would wait in a write with its lock held. The
// abandoned call ends with the connection.
func Clean(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo,
	call ttrpc.Invoker,
) error {
	var own ttrpc.Response // the call's alone, as it may go on
	done := make(chan error, 1)
	go func() { done <- call(ctx, req, &own) }()
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	resp.Payload, resp.Status = own.GetPayload(), own.GetStatus()
	if st := resp.GetStatus(); st != nil {
		st.Message, st.Details = words.Error(st.GetMessage()), nil
	}
	return nil
}
