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
func (l *Link) DialService(ctx context.Context, port uint16) (net.Conn, error) {
	conn, err := l.greet(ctx, contract.PortForward, fmt.Sprintf("%d\n", port))
	if err != nil {
		return nil, fmt.Errorf("port %d: %w", port, err)
	}
	return conn, nil
}

// greet opens a connection to a port of the agent that begins with a line, and reads whether it is taken.
func (l *Link) greet(ctx context.Context, port uint32, greeting string) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	conn, err := l.vm.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if _, err := io.WriteString(conn, greeting); err != nil {
		return nil, err
	}
	answer, err := readLine(conn)
	if !stop() || err != nil {
		return nil, errors.Join(fmt.Errorf("the agent does not answer: %w", context.Cause(ctx)), err)
	}
	if answer != contract.GreetingOK {
		return nil, fmt.Errorf("%s: %w", answer, errdefs.ErrUnavailable)
	}
	return conn, nil
}

// DialResolver opens the stream over which the guest asks for names (package lookup).
func (l *Link) DialResolver(ctx context.Context) (net.Conn, error) {
	return l.greet(ctx, contract.PortResolver, contract.ResolverWord+" 1\n")
}

// DialUpper opens the stream of what the only container has written to its root file system (package upperwire). which
// says of what: contract.UpperStill, UpperAll or UpperChanges.
func (l *Link) DialUpper(ctx context.Context, which int) (net.Conn, error) {
	conn, err := l.greet(ctx, contract.PortUpper, fmt.Sprintf("%s %d\n", contract.UpperWord, which))
	if err != nil {
		return nil, fmt.Errorf("ask the guest for the container's files: %w", err)
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
