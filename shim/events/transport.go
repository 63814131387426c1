// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
)

// eventService is containerd's name for it.
const eventService = "containerd.services.events.ttrpc.v1.Events"

// ttrpcConn is one connection to containerd's event service.
type ttrpcConn struct {
	client *ttrpc.Client
}

// dialTTRPC needs no bound: the kernel answers at once. net.Dialer would link the resolver of host names.
func dialTTRPC(_ context.Context, address string) (forwarder, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: strings.TrimPrefix(address, "unix://"), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("dial containerd's event service: %w", err)
	}
	return &ttrpcConn{client: ttrpc.NewClient(conn)}, nil
}

// Forward sends one envelope and waits for containerd's word.
func (c *ttrpcConn) Forward(ctx context.Context, e *api.Envelope) error {
	err := c.client.Call(ctx, eventService, "Forward", &api.ForwardRequest{Envelope: e}, &emptypb.Empty{})
	if err == nil {
		return nil
	}
	native := errgrpc.ToNative(err)
	if errdefs.IsInvalidArgument(native) || errdefs.IsNotImplemented(native) {
		return permanent{native}
	}
	return fmt.Errorf("forward %s: %w", e.Topic, native)
}

// Close ends the connection.
func (c *ttrpcConn) Close() error { return c.client.Close() }

// publishBinary runs `containerd publish` for each event.
type publishBinary struct {
	path, address string
}

// Forward runs the command with the event on its standard input.
func (b publishBinary) Forward(ctx context.Context, e *api.Envelope) error {
	data, err := proto.Marshal(e.Event)
	if err != nil {
		return permanent{fmt.Errorf("encode %s: %w", e.Topic, err)}
	}
	// The path is containerd's own executable, given by containerd.
	cmd := exec.CommandContext(ctx, b.path, "--address", b.address, "publish", "--topic", e.Topic,
		"--namespace", e.Namespace)
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("publish %s through %s: %w: %s", e.Topic, b.path, err, bytes.TrimSpace(out))
	}
	return nil
}

// Close has nothing to end.
func (publishBinary) Close() error { return nil }
