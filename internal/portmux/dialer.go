// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// Dialer is the host's end.
type Dialer struct {
	*link
}

// NewDialer takes over the channel. The guest need not be there yet: dials wait for it.
func NewDialer(channel io.ReadWriteCloser) *Dialer {
	d := &Dialer{link: newLink(channel, yamux.Client)}
	d.spawn(d.runControl)
	return d
}

// Close ends the channel and everything on it.
func (d *Dialer) Close() error { return d.close() }

// Done is closed when the channel has ended, from whatever side.
func (d *Dialer) Done() <-chan struct{} { return d.session.CloseChan() }

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
	s, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	c := d.adopt(s, port)
	// A deadline in the past is how a blocked yamux call is interrupted.
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	err = handshake(c, port)
	if !stop() && err == nil {
		err = ctx.Err()
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

// open opens a stream, which blocks while too many others wait for the guest; when ctx ends
// first the late stream is closed by a task of the dialer.
func (d *Dialer) open(ctx context.Context) (*yamux.Stream, error) {
	type result struct {
		s   *yamux.Stream
		err error
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	ch := make(chan result)
	ok := d.spawn(func() {
		s, err := d.session.OpenStream()
		select {
		case ch <- result{s, err}:
		case <-ctx.Done():
			if err == nil {
				_ = s.Close() // the guest sees a stream that ends at once
			}
		}
	})
	if !ok {
		return nil, ErrLost
	}
	select {
	case r := <-ch:
		if r.err != nil {
			return nil, fmt.Errorf("%w (%w)", ErrLost, r.err)
		}
		return r.s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
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
	got, err := parseLine(line, "OK")
	if err == nil && got != port {
		err = fmt.Errorf("answer for port %d: %w", got, ErrProtocol)
	}
	return err
}

// runControl brings up the control stream, which is always the first one, and serves it.
func (d *Dialer) runControl() {
	s, err := d.session.OpenStream()
	if err != nil {
		return // the channel has ended
	}
	c := &Conn{stream: s, link: d.link, port: controlPort}
	if err := handshake(c, controlPort); err != nil {
		go d.session.Close()
		return
	}
	d.setControl(c)
	d.readControl(c)
}
