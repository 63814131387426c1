// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package qmp speaks QEMU's machine protocol: JSON lines over a Unix socket.
//
// Only one command runs at a time, for safety: QEMU keeps only the files that were sent last, so a second
// command could replace those of the first. Events are handed to one
// function, in order, none lost. The client ends with the connection; Close ends it early.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coco-shim/coco/internal/fdpass"
)

// ErrClosed says that the connection has ended: the VMM is gone, or Close was called.
var ErrClosed = errors.New("control connection to the VMM has ended")

// sendTimeout bounds the sending of a command, which fits into the socket's buffer: a VMM
// that does not even read is beyond help.
const sendTimeout = 10 * time.Second

// Client is a connection in command mode.
type Client struct {
	conn    *net.UnixConn
	onEvent func(Event)
	version Version
	slot    chan struct{} // capacity 1: held while a command is under way
	done    chan struct{} // closed when the reader has ended

	mu     sync.Mutex
	nextID uint64        // guarded by mu
	waiter chan<- answer // guarded by mu; of the command under way, nil if given up
	err    error         // guarded by mu; set before done is closed
}

type answer struct {
	msg message
	err error
}

// Connect takes over the connection, reads the greeting and enters command mode. onEvent is called
// for each event by the reading goroutine: it must not block and not call the client.
func Connect(ctx context.Context, conn *net.UnixConn, onEvent func(Event)) (*Client, error) {
	c := &Client{conn: conn, onEvent: onEvent, slot: make(chan struct{}, 1), done: make(chan struct{})}
	greeting := make(chan answer, 1)
	c.waiter = greeting // the greeting comes like the answer to a command that nobody sent
	c.slot <- struct{}{}
	go c.read()
	m, err := c.await(ctx, greeting)
	switch {
	case err != nil:
		err = fmt.Errorf("wait for the VMM's greeting: %w", err)
	case m.QMP == nil:
		err = errors.New("wait for the VMM's greeting: something else came")
	default:
		c.version = m.QMP.Version.QEMU
		err = c.Call(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Version is the VMM's version, from the greeting.
func (c *Client) Version() Version { return c.version }

// Done is closed when the connection has ended and all events were handed over.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for the reader. A command under way fails with ErrClosed.
func (c *Client) Close() {
	_ = c.conn.Close() // commands were answered or are lost
	<-c.done
}

// Call executes a command. args is marshalled to its arguments, nil for none; the answer is
// stored in result unless that is nil. The files travel with the command. When ctx ends first, the
// command may still take effect.
func (c *Client) Call(ctx context.Context, command string, args, result any, files ...*os.File) error {
	m, err := c.call(ctx, command, args, files)
	if err == nil && result != nil {
		err = json.Unmarshal(m.Return, result)
	}
	if err != nil {
		return fmt.Errorf("VMM command %s: %w", command, err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, command string, args any, files []*os.File) (message, error) {
	select {
	case c.slot <- struct{}{}: // the reader empties it with the answer
	case <-ctx.Done():
		return message{}, fmt.Errorf("earlier command still under way: %w", context.Cause(ctx))
	case <-c.done:
		return message{}, c.closedError()
	}
	wait := make(chan answer, 1)
	c.mu.Lock()
	c.nextID++
	id := c.nextID
	c.waiter = wait
	c.mu.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		<-c.slot // nothing was sent
		return message{}, err
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)) // fails only with what follows
	if err := fdpass.Send(c.conn, append(line, '\n'), files...); err != nil {
		_ = c.conn.Close() // half a command may be on its way: the connection is of no more use
		<-c.done
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return message{}, fmt.Errorf("%w: the VMM has not read for %v", ErrClosed, sendTimeout)
		}
		return message{}, c.closedError()
	}
	return c.await(ctx, wait)
}

func (c *Client) await(ctx context.Context, wait <-chan answer) (message, error) {
	select {
	case a := <-wait:
		if a.err == nil && a.msg.Error != nil {
			return message{}, a.msg.Error
		}
		return a.msg, a.err
	case <-ctx.Done():
		c.mu.Lock()
		c.waiter = nil // its slot stays taken until the answer comes
		c.mu.Unlock()
		return message{}, context.Cause(ctx)
	}
}

func (c *Client) closedError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read dispatches replies and events until the connection ends.
func (c *Client) read() {
	r := bufio.NewReader(c.conn)
	var err error
	for {
		var line []byte
		if line, err = readLine(r); err != nil {
			break
		}
		var m message
		if m, err = decode(line); err != nil {
			break
		}
		if m.Event != "" {
			c.onEvent(Event{m.Event, m.Data})
			continue
		}
		if err = c.answer(m); err != nil {
			break
		}
	}
	_ = c.conn.Close() // also after a message that makes no sense
	c.mu.Lock()
	c.err = fmt.Errorf("%w (%w)", ErrClosed, err)
	wait := c.waiter
	c.waiter = nil
	c.mu.Unlock()
	if wait != nil {
		wait <- answer{err: c.err}
	}
	close(c.done)
}

// answer gives a message to whom it is for.
func (c *Client) answer(m message) error {
	c.mu.Lock()
	wait, want := c.waiter, c.nextID
	c.waiter = nil
	c.mu.Unlock()
	if m.QMP == nil && (m.ID == nil || *m.ID != want) {
		if wait != nil {
			wait <- answer{err: ErrClosed}
		}
		return errors.New("answer to a command that was not sent")
	}
	select {
	case <-c.slot:
	default:
		return errors.New("answer without a command")
	}
	if wait != nil {
		wait <- answer{msg: m}
	}
	return nil
}
