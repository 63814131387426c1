// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Dialer is the host's end.
type Dialer struct {
	*link

	last atomic.Uint32 // the number of the last stream; a client's are odd
}

// NewDialer takes over the channel. The guest need not be there yet: dials wait for it.
func NewDialer(channel io.ReadWriteCloser) *Dialer {
	d := &Dialer{link: newLink(channel)}
	d.strict = true
	d.spawn(func() {
		_ = d.receive(func(id uint32) error { // the connections learn that the channel is lost
			return fmt.Errorf("the guest opens stream %d: %w", id, ErrProtocol)
		})
	})
	control := d.open(controlPort) // the first stream, on every channel
	d.spawn(func() { d.runControl(control) })
	return d
}

// Close ends the channel and everything on it.
func (d *Dialer) Close() error { return d.close() }

// Done is closed when either side has ended the channel.
func (d *Dialer) Done() <-chan struct{} { return d.done }

// Dial connects to a port of the guest. It waits until the guest answers, ctx ends or the channel
// ends. The connection has a method CloseWrite.
func (d *Dialer) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port == controlPort {
		return nil, fmt.Errorf("dial guest port %d: reserved: %w", port, ErrRefused)
	}
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", port, err)
	}
	return c, nil
}

func (d *Dialer) dial(ctx context.Context, port uint32) (*Conn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	c := d.open(port)
	// A deadline in the past is how a blocked call is interrupted.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := handshake(c, port)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = c.Close()
		if cerr := context.Cause(ctx); cerr != nil {
			return nil, cerr
		}
		return nil, err
	}
	return c, nil
}

// open makes a stream. Its open frame is queued until the guest reads.
func (d *Dialer) open(port uint32) *Conn {
	c := d.adopt(d.last.Add(2)-1, port)
	c.greetPeer(flagSYN)
	return c
}

func handshake(c *Conn, port uint32) error {
	if _, err := c.Write(formatLine("CONNECT", port)); err != nil {
		return err
	}
	line, err := readLine(c)
	if errors.Is(err, io.EOF) {
		return ErrRefused
	}
	if err != nil {
		return err
	}
	if full, err := parseLine(line, "FULL"); err == nil && full == port {
		return ErrFull
	}
	got, err := parseLine(line, "OK")
	if err == nil && got != port {
		err = fmt.Errorf("answer for port %d: %w", got, ErrProtocol)
	}
	return err
}

// runControl serves the control stream.
func (d *Dialer) runControl(c *Conn) {
	if err := handshake(c, controlPort); err != nil {
		_ = d.fail(err)
		return
	}
	d.setControl(c)
	d.readControl(c)
}
