// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/pod"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
	"github.com/coco-shim/coco/shim/bundle"
)

const (
	// endTimeout bounds the wait for a container that was killed.
	endTimeout = 30 * time.Second
	// leaveTimeout bounds the wait for a stand-in whose process has ended.
	leaveTimeout = 5 * time.Second
)

func start(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("start")
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	return 0, o.start(ctx, fl.Arg(0))
}

func (o options) start(ctx context.Context, id string) error {
	return o.connected(id, func(_ state.Container, shim pod.Client) error {
		return shim.Do(ctx, "Start", &api.StartRequest{Id: id})
	})
}

func kill(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("kill")
	var all bool
	fl.BoolVar(&all, "all", false, "")
	fl.BoolVar(&all, "a", false, "")
	if err := parse(fl, args, 1, 2); err != nil {
		return 0, err
	}
	sig, err := signalOf(fl.Arg(1))
	if err != nil {
		return 0, err
	}
	err = o.connected(fl.Arg(0), func(c state.Container, shim pod.Client) error {
		return shim.Do(ctx, "Kill", &api.KillRequest{Id: c.ID, Signal: uint32(sig), All: all}) //nolint:gosec // a signal
	})
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		if _, lerr := o.state().Load(fl.Arg(0)); lerr == nil {
			return 0, fmt.Errorf("container not running: %w", errdefs.ErrFailedPrecondition)
		}
	}
	return 0, err
}

// signalOf reads a signal as runc does: a number, or a name with or without SIG. None is SIGTERM.
func signalOf(s string) (syscall.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q: %w", s, errdefs.ErrInvalidArgument)
}

func deleteVerb(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("delete")
	var force bool
	fl.BoolVar(&force, "force", false, "")
	fl.BoolVar(&force, "f", false, "")
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	return 0, o.delete(ctx, fl.Arg(0), force)
}

// delete frees a container. With force one that runs is killed, and one that is gone is fine.
func (o options) delete(ctx context.Context, id string, force bool) error {
	if err := bundle.CheckName("container id", id); err != nil {
		return err
	}
	unlock, err := o.state().Lock(id)
	if err != nil {
		if errdefs.IsNotFound(err) && force {
			return nil
		}
		return err
	}
	defer unlock()
	c, err := o.state().Load(id)
	switch {
	case errdefs.IsNotFound(err) && force: // its create did not come to its end
		c = state.Container{ID: id, Pod: id}
	case err != nil:
		return err
	default:
		if err := o.deleteTask(ctx, c, force); err != nil {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
	}
	if c.Pod == id {
		if err := o.shim().Delete(ctx, o.state().Dir(id), id); err != nil {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
	}
	if err := endStandIn(c.StandIn); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return o.state().Remove(id)
}

// deleteTask has the shim free the container. A shim that is gone has taken it along.
func (o options) deleteTask(ctx context.Context, c state.Container, force bool) error {
	shim, err := pod.Dial(c.Address)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	defer func() { _ = shim.Close() }() // all calls are answered
	st, err := shim.State(ctx, c.ID)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	running := st == api.Status_RUNNING || st == api.Status_PAUSED
	if running && !force {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s: %w", c.ID, statusName(st),
			errdefs.ErrFailedPrecondition)
	}
	if running {
		if err := end(ctx, c.ID, shim, st); err != nil {
			return err
		}
	}
	if err := shim.Do(ctx, "Delete", &api.DeleteRequest{Id: c.ID}); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return shim.Do(ctx, "Shutdown", &api.ShutdownRequest{Id: c.ID})
}

// end kills a container and waits for its end.
func end(ctx context.Context, id string, shim pod.Client, st api.Status) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if st == api.Status_PAUSED { // its processes have to run to end
		if err := shim.Do(ctx, "Resume", &api.ResumeRequest{Id: id}); err != nil {
			return err
		}
	}
	err := shim.Do(ctx, "Kill", &api.KillRequest{Id: id, Signal: uint32(unix.SIGKILL), All: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, err = shim.Wait(ctx, id, "")
	return err
}

// endStandIn waits for the stand-in of a container that is gone, and kills it if it stays.
func endStandIn(p bundle.Process) error {
	if p.PID == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open its stand-in %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }() // a plain descriptor
	if now, err := bundle.ProcessOf(p.PID); err != nil || now != p {
		return nil //nolint:nilerr // it ended, and the number is another process's
	}
	if ended, err := awaitEnd(fd, leaveTimeout); ended || err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill its stand-in %d: %w", p.PID, err)
	}
	_, err = awaitEnd(fd, leaveTimeout)
	return err
}

// awaitEnd waits for the process behind a pidfd.
func awaitEnd(pidfd int, most time.Duration) (bool, error) {
	for deadline := time.Now().Add(most); ; {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())) //nolint:gosec // a descriptor
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("wait for the stand-in: %w", err)
		}
		return n > 0, nil
	}
}

// runVerb is create and start, and unless detached also the wait and delete.
func runVerb(ctx context.Context, o options, args []string) (int, error) {
	n := newContainer{foreground: true}
	fl := newFlags("run")
	n.flags(fl)
	fl.BoolVar(&n.detach, "detach", false, "")
	fl.BoolVar(&n.detach, "d", false, "")
	fl.BoolVar(&n.keep, "keep", false, "")
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	if err := n.complete(fl); err != nil {
		return 0, err
	}
	n.foreground = !n.detach
	cmd, err := n.create(ctx, o)
	if err != nil {
		return 0, err
	}
	if err := o.start(ctx, n.id); err != nil {
		return 0, errors.Join(err, o.delete(ctx, n.id, true))
	}
	if n.detach {
		return 0, nil
	}
	code, err := follow(cmd)
	if !n.keep {
		err = errors.Join(err, o.delete(ctx, n.id, true))
	}
	return code, err
}

// follow waits for a stand-in that is a child and passes signals to it.
func follow(cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the stand-in
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have ended
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, fmt.Errorf("wait for the stand-in: %w", err)
			}
			st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if ok && st.Signaled() {
				return 128 + int(st.Signal()), nil
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

func pause(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("pause")
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	return 0, o.connected(fl.Arg(0), func(c state.Container, shim pod.Client) error {
		return shim.Do(ctx, "Pause", &api.PauseRequest{Id: c.ID})
	})
}

func resume(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("resume")
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	return 0, o.connected(fl.Arg(0), func(c state.Container, shim pod.Client) error {
		return shim.Do(ctx, "Resume", &api.ResumeRequest{Id: c.ID})
	})
}

// exists reports whether a file is there.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
