// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/unixhttp"
	"github.com/coco-shim/coco/hypervisor/vmm"
)

const (
	// attemptTimeout bounds one attempt while the guest boots: until its driver is up nobody reads.
	attemptTimeout = 2 * time.Second
	// retryDelay is the pause after a refusal while the guest boots. The VMM has no sign for "the
	// guest listens", so this is the one thing here that has to be asked again and again.
	retryDelay = 10 * time.Millisecond
	maxOK      = len("OK 4294967295\n")
)

// errRefused says that nobody listens on the guest's port.
var errRefused = errors.New("nobody listens on it in the guest")

// readOK reads the VMM's answer to CONNECT, "OK <port>\n", and not one byte more: the following
// bytes come from the guest.
func readOK(r io.Reader) error {
	var line []byte
	for one := make([]byte, 1); len(line) < maxOK; {
		if _, err := io.ReadFull(r, one); err != nil {
			if errors.Is(err, io.EOF) && len(line) == 0 {
				return errRefused
			}
			return err
		}
		if line = append(line, one[0]); one[0] == '\n' {
			break
		}
	}
	port, ok := strings.CutPrefix(string(line), "OK ")
	port, end := strings.CutSuffix(port, "\n")
	if n, err := strconv.ParseUint(port, 10, 32); !ok || !end || err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("the VMM answers %.20q to CONNECT", line)
	}
	return nil
}

// dialVsock connects to a port of the guest through the VMM's socket.
func dialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	conn, err := unixhttp.Dial(socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	if err == nil {
		err = readOK(conn)
	}
	if !stop() && err == nil { // the deadline is set or will be
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // it leads nowhere
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	return conn, nil
}

// Connect connects to a port of the guest. While the guest boots it tries again and again.
func (m *machine) Connect(ctx context.Context, port uint32) (net.Conn, error) {
	for {
		c, err := m.attempt(ctx, port)
		if err == nil && m.announced() == vmm.Restarted { // the agent of a boot that does not count
			err = errors.Join(vmm.ErrEnded, c.Close())
			m.AwaitEnd()
		}
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("dial guest port %d: %w", port, context.Cause(ctx))
		case m.Phase() == hypervisor.PhaseRun || m.Dead():
			return nil, fmt.Errorf("dial guest port %d: %w", port, err)
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
		}
	}
}

// attempt is one attempt, whose time is bounded as long as the guest boots.
func (m *machine) attempt(ctx context.Context, port uint32) (net.Conn, error) {
	if m.Phase() != hypervisor.PhaseRun {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
	}
	return dialVsock(ctx, m.vsock, port)
}
