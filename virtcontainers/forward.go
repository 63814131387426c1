// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
)

// openLocalhost lets port-forward of a CRI pod through to the guest's loopback address. Without it
// the pod works all the same, so it is no error when the host cannot do it.
func (c *creation) openLocalhost(context.Context) error {
	open := c.opts.Host.Localhost
	if open == nil || c.opts.First != nil || !slices.Contains(strings.Fields(c.vmspec.Boot.Cmdline),
		contract.ParamPortForward) {
		return nil
	}
	gate, err := open(c.netns)
	if err != nil {
		c.log.Warn("port-forward to this pod will not work", "pod", c.opts.ID, "error", err)
		return nil
	}
	c.u.Push("close localhost", func(context.Context) error { return gate.Close() })
	c.life.spawn(func(ctx context.Context) { gate.Serve(ctx, c.dialService) })
	return nil
}

// forwardTimeout bounds the way to a service; the agent gives up after 10 s.
const forwardTimeout = 15 * time.Second

// dialService connects with what listens on a port of the guest's loopback address.
func (p *Pod) dialService(ctx context.Context, port uint16) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	conn, err := p.vm.Dial(ctx, contract.PortForward)
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

// readLine reads up to the end of a line and not a byte further: the following bytes belong to the forwarded stream.
func readLine(r io.Reader) (string, error) {
	const most = 512
	var line bytes.Buffer
	b := make([]byte, 1)
	for line.Len() < most {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return line.String(), nil
		}
		line.WriteByte(b[0])
	}
	return "", fmt.Errorf("a line of more than %d bytes: %w", most, errdefs.ErrOutOfRange)
}
