// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rego asks coco-rego, a program of the guest image, about requests of the host, for pods whose initdata has a
// policy of Kata's agent (policy.rego).
//
// Start opens the part of the image that has the program and runs it, beside the rest of the boot; questions wait for
// it. The program gets no file, no environment, no network and no privilege, only a socket to answer
// on. Once anything has failed (the part is
// not there, the policy is refused, the program has ended or does not answer) each question is denied with that reason.
// Close ends the program.
package rego

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/agent/reap"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy/katarego/pipe"
)

// startTime bounds the start, with the rest of the boot that it waits for.
const startTime = 2 * time.Minute

// nobody is the user that the program runs as.
const nobody = 65534

// Config is what Start needs.
type Config struct {
	Policy string // its text
	// Ready waits until the kernel modules are loaded that opening a part needs.
	Ready func(context.Context) error
	// Open returns the directory of a part of the guest image.
	Open func(ctx context.Context, part string) (dir string, err error)
	// Spawn runs a program; reap.Reaper's method.
	Spawn func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error)
}

// Engine is a policy in a program of its own. Its methods may be called by several goroutines.
type Engine struct {
	stop  context.CancelFunc
	ready chan struct{} // closed when the next two fields are set
	asks  *pipe.Client
	err   error // why there is no client

	ended chan struct{} // closed when the goroutine has ended
}

// Start begins to start the program.
func Start(c Config) *Engine {
	ctx, stop := context.WithCancel(context.Background())
	e := &Engine{stop: stop, ready: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(e.ended)
		e.run(ctx, c)
	}()
	return e
}

// Close ends the program and waits for its end.
func (e *Engine) Close() {
	e.stop()
	<-e.ended
}

// run starts the program and watches it until it has ended or ctx is done.
func (e *Engine) run(ctx context.Context, c Config) {
	child, conn, err := spawn(ctx, c)
	if err == nil {
		// Close waits for no answer: the program that owes one is killed.
		defer context.AfterFunc(ctx, func() { _ = child.Signal(unix.SIGKILL) })()
		e.asks, err = pipe.New(conn, c.Policy)
		if errdefs.IsInvalidArgument(err) {
			err = fmt.Errorf("policy.rego is refused: %w", err)
		}
	}
	e.err = err
	close(e.ready)
	if child == nil {
		return
	}
	if err == nil {
		select {
		case <-child.Done():
			e.asks.Broken(fmt.Errorf("it has ended with status %d", child.ExitCode()))
			return
		case <-ctx.Done():
			e.asks.Broken(errors.New("the guest ends"))
		}
	}
	_ = child.Signal(unix.SIGKILL) // it may have ended
	<-child.Done()
}

// program is the name of coco-rego in its part.
const program = "coco-rego"

// spare is the oom_score_adj of the program: other processes are killed first when the guest has no memory left.
const spare = "-900"

// spawn runs the program with one end of a socket pair as its input and output.
func spawn(ctx context.Context, c Config) (*reap.Child, pipe.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		return nil, nil, fmt.Errorf("load modules: %w", err)
	}
	dir, err := c.Open(ctx, contract.PartRego)
	if err != nil {
		return nil, nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "coco-rego's end")
	defer theirs.Close()
	err = unix.SetNonblock(pair[0], true) // so that deadlines work
	ours := os.NewFile(uintptr(pair[0]), "coco-rego's pipe")
	child, err := execute(filepath.Join(dir, program), theirs, c, err)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	return child, ours, nil
}

// execute starts the program, unless err says that there is no use in it.
func execute(path string, io *os.File, c Config, err error) (*reap.Child, error) {
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	child, err := c.Spawn(path, []string{program}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{io.Fd(), io.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Setsid: true, Cloneflags: unix.CLONE_NEWNET,
		},
	})
	if err != nil {
		return nil, err
	}
	// Without it the program may be killed for the sake of a container, and then everything is denied.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", child.Pid()), []byte(spare), 0)
	return child, nil
}

// client returns the connection once the program serves.
func (e *Engine) client() (*pipe.Client, error) {
	<-e.ready // spawn and pipe.New are bounded
	if e.err != nil {
		return nil, fmt.Errorf("denied, because the policy engine coco-rego could not be started: %w: %w", e.err,
			errdefs.ErrPermissionDenied)
	}
	return e.asks, nil
}

// Ask decides about a request. Without an error it is allowed, and commit is to be called once it has been handled. A
// request that connects a stream to a process's input is one to write to it as well.
func (e *Engine) Ask(m proto.Message) (commit func(), err error) {
	c, err := e.client()
	if err != nil {
		return nil, err
	}
	if req, ok := m.(interface {
		GetStdinPort() uint32
		GetContainerId() string
		GetExecId() string
	}); ok && req.GetStdinPort() != 0 {
		written, err := c.Ask(&pb.WriteStreamRequest{ContainerId: req.GetContainerId(), ExecId: req.GetExecId()})
		if err != nil {
			return nil, err
		}
		written()
	}
	return c.Ask(m)
}

// Output says whether the host may have the output of a process by a stream: whether it may read it by calls.
func (e *Engine) Output(id, exec string) bool {
	c, err := e.client()
	if err != nil {
		return false
	}
	commit, err := c.Ask(&pb.ReadStreamRequest{ContainerId: id, ExecId: exec})
	if err != nil {
		return false
	}
	commit()
	return true
}
