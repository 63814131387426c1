// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
)

// leaveTimeout is how long a serving process that is on its way out may take.
const leaveTimeout = time.Second

// Delete frees what the shim of a bundle left and returns what belongs on standard output. cleanup
// frees the pod's resources. It may be called at any time and any number of times: a serving process
// that containerd has given up is ended first.
func Delete(ctx context.Context, inv Invocation, dir bundle.Dir,
	cleanup func(ctx context.Context, bundle string) error,
) ([]byte, error) {
	var errs []error
	if p, ok := dir.Shim(); ok {
		errs = append(errs, endShim(ctx, p))
	}
	errs = append(errs, cleanup(ctx, string(dir)))
	if address, err := dir.Address(); err == nil && filepath.Base(address) == socketName(inv.Address, inv.Namespace,
		inv.ID) && !isServed(address) {
		errs = append(errs, removeSocket(address))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("delete %s: %w", inv.ID, err)
	}
	exit, ok := dir.Exit()
	if !ok {
		exit = bundle.Exit{Status: 128 + uint32(unix.SIGKILL), At: time.Now()}
	}
	return proto.Marshal(&api.DeleteResponse{
		Pid: dir.Init(), ExitStatus: exit.Status,
		ExitedAt: timestamppb.New(exit.At),
	})
}

// endShim waits a moment for the process to leave by itself and then kills it.
func endShim(ctx context.Context, p bundle.Process) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open serving process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }() // a plain descriptor
	if now, err := bundle.ProcessOf(p.PID); err != nil || now != p {
		return nil // it ended, and the number is somebody else's
	}
	if gone, err := awaitExit(ctx, fd, leaveTimeout); gone || err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill serving process %d: %w", p.PID, err)
	}
	gone, err := awaitExit(ctx, fd, leaveTimeout)
	if err == nil && !gone {
		err = fmt.Errorf("serving process %d does not end after SIGKILL", p.PID)
	}
	return err
}

// awaitExit waits for the process behind a pidfd.
func awaitExit(ctx context.Context, pidfd int, most time.Duration) (bool, error) {
	deadline := time.Now().Add(most)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for {
		left := max(time.Until(deadline), 0)
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}} //nolint:gosec // a descriptor fits
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("wait for the serving process: %w", err)
		}
		return n > 0, nil
	}
}
