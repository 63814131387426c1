// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pipe

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// Conn is a connection to coco-rego. A read or write that lasts beyond its deadline fails.
type Conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// Times that coco-rego has. Under emulation a decision takes 0.1 s and compiling 0.5 s.
const (
	compileTime = 60 * time.Second
	answerTime  = 30 * time.Second
)

// Client asks coco-rego. Its methods may be called by several goroutines. Once anything has failed, every answer is the
// same error, which denies.
type Client struct {
	mu     sync.Mutex
	conn   Conn  // used with mu held: questions come one after the other
	broken error // guarded by mu
}

// New sends a policy. It takes the connection, which it closes with its first failure. A policy that is refused is
// errdefs.ErrInvalidArgument.
func New(conn Conn, policy string) (*Client, error) {
	c := &Client{conn: conn}
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, err := c.exchangeLocked(compileTime, []byte(policy))
	if err == nil && len(answer) > 0 {
		err = fmt.Errorf("%s: %w", answer, errdefs.ErrInvalidArgument)
		err = c.breakLocked(err)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Ask asks about a request. Without an error it is allowed, and commit is to be called once it has been handled. The
// error is errdefs.ErrPermissionDenied.
func (c *Client) Ask(m proto.Message) (commit func(), err error) {
	wire, err := proto.Marshal(m)
	if err != nil {
		return nil, denied("encode the request", err)
	}
	name := string(m.ProtoReflect().Descriptor().FullName())
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, err := c.exchangeLocked(answerTime, []byte{kindAsk}, []byte(name), []byte{0}, wire)
	if err != nil {
		return nil, denied("ask", err)
	}
	kind, rest := split(answer)
	switch kind {
	case kindYes:
		n, err := parseNumber(rest)
		if err != nil {
			return nil, denied("read the answer", c.breakLocked(err))
		}
		if n == 0 {
			return func() {}, nil
		}
		return func() { c.commit(n) }, nil
	case kindNo:
		return nil, fmt.Errorf("%s: %w", rest, errdefs.ErrPermissionDenied)
	case kindError:
		return nil, fmt.Errorf("denied, because the policy cannot be evaluated: %s: %w", rest, errdefs.ErrPermissionDenied)
	}
	return nil, denied("read the answer", c.breakLocked(fmt.Errorf("an answer of kind %q", kind)))
}

// commit has the changes of state applied. If that fails, the state is unknown, and the client is broken.
func (c *Client) commit(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, err := c.exchangeLocked(answerTime, []byte{kindCommit}, number(n))
	if err != nil {
		return // broken already
	}
	if kind, rest := split(answer); kind != kindYes {
		_ = c.breakLocked(fmt.Errorf("note what was handled: %s", rest))
	}
}

// Broken makes every later answer an error: the program has ended, or is not to be asked.
func (c *Client) Broken(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.breakLocked(why)
}

func denied(step string, err error) error {
	return fmt.Errorf("denied, because the policy engine coco-rego does not answer: %s: %w: %w", step, err,
		errdefs.ErrPermissionDenied)
}

// exchangeLocked sends a frame and reads the answer.
func (c *Client) exchangeLocked(limit time.Duration, parts ...[]byte) ([]byte, error) {
	if c.broken != nil {
		return nil, c.broken
	}
	if err := c.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, c.breakLocked(err)
	}
	if err := writeFrame(c.conn, parts...); err != nil {
		return nil, c.breakLocked(err)
	}
	answer, err := readFrame(c.conn)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it has ended")
	}
	if err != nil {
		return nil, c.breakLocked(err)
	}
	return answer, nil
}

// breakLocked closes the connection and returns the first reason.
func (c *Client) breakLocked(err error) error {
	if c.broken == nil {
		c.broken = err
		_ = c.conn.Close() // the reason is err
	}
	return c.broken
}

func split(frame []byte) (kind byte, rest []byte) {
	if len(frame) == 0 {
		return 0, nil
	}
	return frame[0], frame[1:]
}
