// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inside has the commands that look into a container: its output, and commands that run in it.
package inside

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco/internal/pods"
)

// execOptions are the flags of coco exec.
type execOptions struct {
	container, workdir string
	stdin, tty         bool
}

// ExecCommand returns coco exec.
func ExecCommand() *cobra.Command {
	var config string
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec POD -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a container",
		Long: "Runs a command beside the container's own, with its user, environment and limits, whichever engine has\n" +
			"started the pod. It asks the pod's shim and no API server. A pod with a policy runs only commands that its\n" +
			"policy allows. The exit status is the command's.",
		Example: "  sudo coco exec default/web -- ls /\n  sudo coco exec default/web -c nginx -it -- sh",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := pods.Open(cmd.Context(), config, args[0], o.container)
			if err != nil {
				return err
			}
			defer t.Close()
			e, err := newExecution(cmd.Context(), t.Task, t.ID, args[1:], o)
			if err != nil {
				return err
			}
			if o.tty {
				restore, err := e.rawTerminal(cmd.Context())
				if err != nil {
					return err
				}
				defer restore()
			}
			return e.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	f.StringVarP(&o.container, "container", "c", "", "container of the pod, by name or the beginning of its id")
	f.StringVarP(&o.workdir, "workdir", "w", "", "directory to begin in (default: the container's)")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "pass standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// execution is a command in a container.
type execution struct {
	t             pods.Task
	container, id string
	process       specs.Process
	stdin         bool
}

// exitError says that the command ended with a status of its own.
type exitError uint32

func (e exitError) Error() string { return fmt.Sprintf("the command ended with status %d", uint32(e)) }

// ExitCode is that of coco.
func (e exitError) ExitCode() int { return int(e & 0xff) }

// newExecution describes a command like the container's first process.
func newExecution(
	ctx context.Context, t pods.Task, container string, args []string, o execOptions,
) (*execution, error) {
	st, err := t.State(ctx, container)
	if err != nil {
		return nil, err
	}
	if st.Status != api.Status_RUNNING {
		return nil, fmt.Errorf("container %s is %s: only a running one takes commands", container, st.Status)
	}
	spec, err := pods.ReadSpec(st.Bundle)
	if err != nil {
		return nil, err
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("container %s has no process", container)
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	e := &execution{
		t: t, container: container, id: "coco-exec-" + hex.EncodeToString(id), process: *spec.Process, stdin: o.stdin,
	}
	e.process.Args, e.process.CommandLine, e.process.Terminal, e.process.ConsoleSize = args, "", o.tty, nil
	if o.workdir != "" {
		e.process.Cwd = o.workdir
	}
	return e, nil
}

// rawTerminal passes every key on, and the size of the window.
func (e *execution) rawTerminal(ctx context.Context) (restore func(), err error) {
	c, err := console.ConsoleFromFile(os.Stdin)
	if err != nil {
		return nil, fmt.Errorf("-t needs a terminal at standard input: %w", err)
	}
	if err := c.SetRaw(); err != nil {
		return nil, fmt.Errorf("-t: %w", err)
	}
	if s, err := c.Size(); err == nil {
		e.process.ConsoleSize = &specs.Box{Height: uint(s.Height), Width: uint(s.Width)}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			if s, err := c.Size(); err == nil {
				_ = e.resize(ctx, uint32(s.Width), uint32(s.Height)) // the next change tries again
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		cancel()
		<-done
		_ = c.Reset() // the shell repairs its terminal
	}, nil
}

func (e *execution) resize(ctx context.Context, width, height uint32) error {
	r := &api.ResizePtyRequest{Id: e.container, ExecId: e.id, Width: width, Height: height}
	return e.t.Call(ctx, "ResizePty", r, &emptypb.Empty{})
}

// endTimeout bounds each step after the command's end, and how long a signal is waited for.
const endTimeout = 10 * time.Second

// run runs the command with streams through FIFOs.
func (e *execution) run(ctx context.Context, in io.Reader, out, errs io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "coco-exec-")
	if err != nil {
		return fmt.Errorf("make a directory for the command's streams: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var p pipes
	defer p.close()
	spec, err := json.Marshal(e.process)
	if err != nil {
		return err
	}
	req := &api.ExecProcessRequest{
		Id: e.container, ExecId: e.id, Terminal: e.process.Terminal,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec},
	}
	if req.Stdout, err = p.output(filepath.Join(dir, "out"), out); err != nil {
		return err
	}
	if !e.process.Terminal {
		if req.Stderr, err = p.output(filepath.Join(dir, "err"), errs); err != nil {
			return err
		}
	}
	if e.stdin {
		if req.Stdin, err = p.input(filepath.Join(dir, "in")); err != nil {
			return err
		}
	}
	if err := e.t.Call(ctx, "Exec", req, &emptypb.Empty{}); err != nil {
		return e.explain(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		r := &api.DeleteRequest{Id: e.container, ExecId: e.id}
		if derr := e.t.Call(ctx, "Delete", r, &api.DeleteResponse{}); derr != nil && err == nil {
			err = fmt.Errorf("remove the ended command: %w", derr)
		}
	}()
	// An interrupt is for the command, once it has started.
	start := &api.StartRequest{Id: e.container, ExecId: e.id}
	if err := e.t.Call(context.WithoutCancel(ctx), "Start", start, &api.StartResponse{}); err != nil {
		return e.explain(err)
	}
	if e.stdin {
		p.feed(in, func() {
			r := &api.CloseIORequest{Id: e.container, ExecId: e.id, Stdin: true}
			_ = e.t.Call(context.WithoutCancel(ctx), "CloseIO", r, &emptypb.Empty{}) // the command may have ended
		})
	}
	status, err := e.wait(ctx)
	if err = errors.Join(err, p.drain()); err != nil {
		return err
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// explain adds the way out to a refusal.
func (e *execution) explain(err error) error {
	if errdefs.IsPermissionDenied(err) {
		return fmt.Errorf("run a command in container %s: %w; the pod's policy says which commands it takes: "+
			"coco policy show tells them, and its owner can allow more in a new pod", e.container, err)
	}
	return fmt.Errorf("run a command in container %s: %w", e.container, err)
}

// wait returns the command's status. When ctx ends, the command is told to end, and after a while killed.
func (e *execution) wait(ctx context.Context) (uint32, error) {
	done := make(chan error, 1)
	resp := &api.WaitResponse{}
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		done <- e.t.Call(calls, "Wait", &api.WaitRequest{Id: e.container, ExecId: e.id}, resp)
	}()
	signals := []uint32{uint32(unix.SIGTERM), uint32(unix.SIGKILL)}
	next, interrupted := ctx.Done(), false
	var late <-chan time.Time
	for {
		select {
		case err := <-done:
			if err != nil {
				return 0, fmt.Errorf("wait for the command: %w", err)
			}
			return resp.ExitStatus, nil
		case <-next:
			next, interrupted = nil, true
		case <-late:
		}
		if len(signals) == 0 {
			cancel()
			<-done //nolint:errcheck // it was cancelled
			return 0, fmt.Errorf("the command does not end %s after SIGKILL", endTimeout)
		}
		if interrupted {
			r := &api.KillRequest{Id: e.container, ExecId: e.id, Signal: signals[0]}
			_ = e.t.Call(calls, "Kill", r, &emptypb.Empty{}) // it may have ended: Wait tells
			signals = signals[1:]
			late = time.After(endTimeout)
		}
	}
}
