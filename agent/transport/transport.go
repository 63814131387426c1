// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package transport makes net.Listeners for the guest's port numbers from the devices that connect guest and
// host: AF_VSOCK where the machine has the device, else a virtio-serial port multiplexed by portmux, and both
// where it has both. The caller serves the ports.
//
// Lifecycle: Serve blocks until its context is done and has then closed everything it opened. A
// virtio-serial session that ends (the host closed its side) is followed by a new one. The port does not
// show which host it is connected to. A host that connects again before the guest has noticed the end
// of the earlier one breaks the protocol of that session, which ends it; it has to connect once more.
package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/mdlayher/vsock"

	"github.com/coco-shim/coco/agent/boot"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/portmux"
)

// Ports says what serves each port. A server returns when its listener is closed; it is called
// once for each transport and session.
type Ports map[uint32]func(net.Listener) error

// Serve serves the ports on every transport until ctx is done.
func Serve(ctx context.Context, ports Ports, log *slog.Logger) error {
	var wg sync.WaitGroup
	var verr, serr error
	if boot.HasVsock() {
		wg.Go(func() { verr = serveVsock(ctx, ports, log) })
	}
	wg.Go(func() { serr = serveSerial(ctx, ports, log) })
	wg.Wait()
	return errors.Join(verr, serr)
}

func serveVsock(ctx context.Context, ports Ports, log *slog.Logger) error {
	var wg sync.WaitGroup
	var err error
	for port, serve := range ports {
		var l net.Listener
		if l, err = vsock.Listen(port, nil); err != nil {
			err = fmt.Errorf("listen on vsock port %d: %w", port, err)
			break
		}
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		wg.Go(func() {
			defer stop()
			logEnd(log, "vsock", port, serve(l))
		})
	}
	wg.Wait()
	return err
}

// serveSerial waits for the port and serves sessions on it, one after the other.
func serveSerial(ctx context.Context, ports Ports, log *slog.Logger) error {
	dev, err := WaitPort(ctx, contract.SerialPort)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		port, err := OpenSerial(dev)
		if err != nil {
			return err
		}
		if err := serveSession(ctx, port, ports, log); err != nil && ctx.Err() == nil {
			log.Warn("session on virtio-serial port ended", "error", err)
		}
	}
	return nil
}

func serveSession(ctx context.Context, channel io.ReadWriteCloser, ports Ports, log *slog.Logger) error {
	mux := portmux.NewMux(channel)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer mux.Close()
	for port, serve := range ports {
		l, err := mux.Listen(port)
		if err != nil {
			return err
		}
		wg.Go(func() { logEnd(log, "virtio-serial", port, serve(l)) })
	}
	stop := context.AfterFunc(ctx, func() { _ = mux.Close() })
	defer stop()
	return mux.Serve()
}

func logEnd(log *slog.Logger, name string, port uint32, err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		log.Warn("port is no longer served", "transport", name, "port", port, "error", err)
	}
}
