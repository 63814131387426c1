// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rlimit"
	"github.com/coco-shim/coco/shim/bundle"
)

// A process that waits for a pod becomes the serving process of the pod that `start` is called for. It gets the same as
// one that `start` runs: the socket, the pipe on which it says that it serves, and what is otherwise in arguments and
// environment.

// EnvCold is the environment variable with the reason why the pod has no process that waited for it.
const EnvCold = "COCO_COLD"

// Warm hands text and files to a process that waits for pods like the one of a bundle. PID 0 without an error says that
// none is to be looked for, an error why there is none.
type Warm func(p Params, dir bundle.Dir, text []byte, files ...*os.File) (bundle.Process, error)

// handover is the text.
type handover struct {
	Invocation   Invocation
	TTRPCAddress string
	Bundle       string
	Files        uint64 // soft limit of open files that containerd sets for its children
	Limits       rlimit.Limits
}

// handOver finds a process that waits, and waits until it serves. On an error none does.
func handOver(ctx context.Context, p Params, dir bundle.Dir, l *net.UnixListener, warm Warm) (id bundle.Process,
	err error,
) {
	if warm == nil {
		return id, nil
	}
	h := handover{Invocation: p.Invocation, TTRPCAddress: p.TTRPCAddress, Bundle: string(dir)}
	if h.Files, err = rlimit.Original(); err == nil {
		h.Limits, err = rlimit.Mine()
	}
	if err != nil {
		return id, err
	}
	text, err := json.Marshal(h)
	if err != nil {
		return id, err
	}
	socket, err := l.File()
	if err != nil {
		return id, fmt.Errorf("hand over socket: %w", err)
	}
	defer func() { _ = socket.Close() }() // a duplicate
	ready, theirs, err := os.Pipe()
	if err != nil {
		return id, fmt.Errorf("make ready pipe: %w", err)
	}
	defer func() { _ = ready.Close() }() // only read from
	id, err = warm(p, dir, text, socket, theirs)
	_ = theirs.Close() // the process has its own
	if err != nil || id.PID == 0 {
		return id, err
	}
	if err := awaitReady(ctx, ready); err != nil {
		return id, errors.Join(fmt.Errorf("standby VM: %w", err), endNow(id))
	}
	preferForOOM(id.PID)
	return id, nil
}

// endNow kills a process that may have the socket and does not serve.
func endNow(p bundle.Process) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // a plain descriptor
	if now, err := bundle.ProcessOf(p.PID); err != nil || now != p {
		return nil //nolint:nilerr // it ended, and the number is somebody else's
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// ServeHanded is Serve for a process that was set up (SetUp) and got text and files of handOver.
func ServeHanded(text []byte, files []*os.File, build func(Env) (Program, error)) error {
	if len(files) != 2 {
		return fmt.Errorf("%d files came with a pod, not socket and pipe: %w", len(files), errdefs.ErrInvalidArgument)
	}
	ready := files[1]
	err := serveHanded(text, files[0], ready, build)
	if err != nil {
		_, _ = ready.WriteString(err.Error()) // closed, where it has served
	}
	return errors.Join(err, closeOnce(ready))
}

func serveHanded(text []byte, socket, ready *os.File, build func(Env) (Program, error)) error {
	var h handover
	if err := json.Unmarshal(text, &h); err != nil {
		return fmt.Errorf("read what pod it is: %w", err)
	}
	if err := h.Invocation.validate(); err != nil {
		return err
	}
	if err := os.Chdir(h.Bundle); err != nil {
		return fmt.Errorf("enter the bundle: %w", err)
	}
	if err := rlimit.Take(h.Limits); err != nil {
		return err
	}
	if err := os.Setenv(rlimit.Env, strconv.FormatUint(h.Files, 10)); err != nil {
		return err
	}
	l, err := listenerOf(socket)
	if err != nil {
		return err
	}
	env := Env{Invocation: h.Invocation, TTRPCAddress: h.TTRPCAddress, Bundle: bundle.Dir(h.Bundle)}
	return serve(env, l, ready, build)
}

func closeOnce(f *os.File) error {
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
