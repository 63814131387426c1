// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/rlimit"
	"github.com/coco-shim/coco/shim/bundle"
)

// The serving process's inherited descriptors, and the word that it writes to readyFD when it serves.
// Any other text there is the reason why it does not.
const (
	socketFD  = 3
	readyFD   = 4
	readyWord = "ready\n"
)

// readyTimeout bounds the start of the serving process. It only sets itself up: VMs come later.
const readyTimeout = 20 * time.Second

// ReadStdin reads the daemon's input up to a bound.
func ReadStdin(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxStdin+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(data) > maxStdin {
		return nil, fmt.Errorf("standard input holds more than %d bytes: %w", maxStdin, errdefs.ErrInvalidArgument)
	}
	return data, nil
}

// Start finds or starts the shim that serves the container whose bundle is dir and returns what
// belongs on standard output. exe is the shim's executable.
// warm finds processes that wait for pods; nil: there are none.
func Start(ctx context.Context, p Params, dir bundle.Dir, exe string, warm Warm) ([]byte, error) {
	role, err := bundle.ReadRole(string(dir), p.ID)
	if err != nil {
		return nil, err
	}
	address, err := socketAddress(p.SocketDir, p.Address, p.Namespace, role.PodID)
	if err != nil {
		return nil, err
	}
	if role.PodID != p.ID {
		if !isServed(address) {
			return nil, fmt.Errorf("container %s belongs to sandbox %s, whose shim does not answer at %s: %w",
				p.ID, role.PodID, address, errdefs.ErrUnavailable)
		}
	} else if err := startServing(ctx, p, dir, exe, address, warm); err != nil {
		return nil, err
	}
	if err := dir.WriteAddress(address); err != nil {
		return nil, err
	}
	return p.answer(address)
}

func startServing(ctx context.Context, p Params, dir bundle.Dir, exe, address string, warm Warm) (err error) {
	l, err := listen(address)
	if err != nil {
		return err
	}
	if len(p.Options) > 0 && !dir.HasSpec() { // a sandbox gets them only here
		if err := dir.WriteOptions(p.Options); err != nil {
			return errors.Join(err, l.Close(), removeSocket(address))
		}
	}
	defer func() {
		err = errors.Join(err, l.Close()) // the serving process has its own
		if err != nil {
			err = errors.Join(err, removeSocket(address))
		}
	}()
	id, why := handOver(ctx, p, dir, l, warm)
	if why != nil || id.PID == 0 {
		return spawn(ctx, p, dir, exe, l, why)
	}
	return dir.WriteShim(id)
}

// spawn runs the serving process and waits until it serves or says why not. cold is why no process that waits serves.
func spawn(ctx context.Context, p Params, dir bundle.Dir, exe string, l *net.UnixListener, cold error) (err error) {
	socket, err := l.File()
	if err != nil {
		return fmt.Errorf("hand over socket: %w", err)
	}
	defer func() { _ = socket.Close() }() // a duplicate
	ready, childReady, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make ready pipe: %w", err)
	}
	defer func() { _ = ready.Close() }() // only read from

	cmd := serveCommand(p, dir, exe)
	files, err := rlimit.Original()
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, rlimit.Env+"="+strconv.FormatUint(files, 10))
	if cold != nil {
		cmd.Env = append(cmd.Env, EnvCold+"="+cold.Error())
	}
	cmd.ExtraFiles = []*os.File{socketFD - 3: socket, readyFD - 3: childReady}
	cmd.Stderr = childReady // until it has its log
	err = cmd.Start()
	_ = childReady.Close() // the child has its own
	if err != nil {
		return fmt.Errorf("start %s: %w", exe, err)
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill() // may have ended by itself
			_ = cmd.Wait()         // its status says less than err
		}
	}()
	if err := awaitReady(ctx, ready); err != nil {
		return err
	}
	preferForOOM(cmd.Process.Pid)
	id, err := bundle.ProcessOf(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("identify the serving process: %w", err)
	}
	return dir.WriteShim(id)
}

func serveCommand(p Params, dir bundle.Dir, exe string) *exec.Cmd {
	args := []string{"-namespace", p.Namespace, "-id", p.ID, "-address", p.Address, "-publish-binary", p.PublishBinary}
	if p.Debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(exe, args...) //nolint:gosec // ourselves; it outlives this call
	cmd.Dir = string(dir)
	cmd.Env = []string{envTTRPCAddress + "=" + p.TTRPCAddress}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, envTTRPCAddress+"=") && !strings.HasPrefix(e, envMaxVersion+"=") &&
			!strings.HasPrefix(e, rlimit.Env+"=") && !strings.HasPrefix(e, EnvCold+"=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// awaitReady reads until the child closes the pipe.
func awaitReady(ctx context.Context, ready *os.File) error {
	deadline := time.Now().Add(readyTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := ready.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("bound the wait for the serving process: %w", err)
	}
	said, err := io.ReadAll(io.LimitReader(ready, 64<<10))
	if bytes.HasSuffix(said, []byte(readyWord)) {
		return nil
	}
	reason := string(bytes.TrimSpace(said))
	if reason == "" {
		reason = "it said nothing"
	}
	if err != nil {
		return fmt.Errorf("serving process is not ready: %w: %s", err, reason)
	}
	return fmt.Errorf("serving process ended at once: %s", reason)
}

// preferForOOM makes the shim a little more likely to be killed than containerd, as containerd's own
// shims are. It is a preference: where it may not be set, the shim works as well.
func preferForOOM(pid int) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || score >= 1000 {
		return
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score+1)), 0)
}
