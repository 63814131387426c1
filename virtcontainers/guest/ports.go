// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/line"
	"github.com/coco-shim/coco/internal/portmux"
)

// DialStream opens a byte stream with a number that no other stream of the VM has.
func (l *Link) DialStream(ctx context.Context) (net.Conn, uint32, error) {
	n := l.streams.Add(1)
	conn, err := l.vm.Dial(ctx, contract.PortStreams)
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
		err = fmt.Errorf("announce stream %d: %w", n, err)
		if cerr := conn.Close(); !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
		return nil, 0, err
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

// forwardTimeout bounds the way to a service; the agent gives up after 10 s.
const forwardTimeout = 15 * time.Second

// DialService connects with what listens on a port of the guest's loopback address.
func (l *Link) DialService(ctx context.Context, port uint16) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	conn, err := l.vm.Dial(ctx, contract.PortForward)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if _, err := fmt.Fprintf(conn, "%d\n", port); err != nil {
		return nil, err
	}
	answer, err := readLine(conn)
	if !stop() || err != nil {
		return nil, errors.Join(fmt.Errorf("no answer about port %d: %w", port, context.Cause(ctx)), err)
	}
	if answer != contract.GreetingOK {
		return nil, fmt.Errorf("%s: %w", answer, errdefs.ErrUnavailable)
	}
	return conn, nil
}

// readLine reads the agent's answer to a greeting.
func readLine(r io.Reader) (string, error) {
	const limit = 512
	text, err := line.Read(r, limit)
	if errors.Is(err, line.ErrTooLong) {
		err = fmt.Errorf("an answer of more than %d bytes: %w", limit, errdefs.ErrOutOfRange)
	}
	return text, err
}
