// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/agent/ocispec"
	"github.com/coco-shim/coco/agent/runner"
	"github.com/coco-shim/coco/agent/stdio"
	pb "github.com/coco-shim/coco/api/agent"
)

const sigKill = unix.SIGKILL

// process is the init process (id "") or an exec of a container.
type process struct {
	id       string
	terminal bool
	io       *stdio.IO
	child    runner.Process
	done     chan struct{} // closed after the exit was noted everywhere
	retiring atomic.Bool
}

func newProcess(id string, terminal bool, io *stdio.IO, child runner.Process) *process {
	return &process{id: id, terminal: terminal, io: io, child: child, done: make(chan struct{})}
}

// exit makes the exit known to waiters.
func (p *process) exit() {
	p.io.Exited()
	close(p.done)
}

// exited keeps the exit code of an exec for late waiters.
type exited struct {
	id   string
	code int
}

// maxRetired bounds how many exits of execs a container remembers.
const maxRetired = 64

// processes lists the init process and all execs.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*process, 0, len(c.execs)+1)
	if c.init != nil {
		list = append(list, c.init)
	}
	for _, p := range c.execs {
		if p != nil {
			list = append(list, p)
		}
	}
	return list
}

// process finds a process; "" and the container's own id mean init.
func (s *service) process(cid, execID string) (*container, *process, error) {
	c, err := s.container(cid)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.init
	if execID != "" && execID != cid {
		p = c.execs[execID]
	}
	if p == nil {
		return c, nil, fmt.Errorf("process %q of container %s: %w", execID, cid, errdefs.ErrNotFound)
	}
	return c, p, nil
}

// ExecProcess starts a further process in a running container.
func (s *service) ExecProcess(ctx context.Context, req *pb.ExecProcessRequest) (*emptypb.Empty, error) {
	if err := checkExecID(req.ExecId); err != nil {
		return nil, err
	}
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	proc, err := ocispec.Process(req.Process)
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", req.ExecId, err)
	}
	proc.ApparmorProfile, proc.SelinuxLabel = "", "" // as in adapt
	if err := s.rights(proc, false); err != nil {
		return nil, fmt.Errorf("exec %s: %w", req.ExecId, err)
	}
	if err := c.reserve(req.ExecId); err != nil {
		return nil, err
	}
	p, err := s.exec(ctx, c, req, runner.Exec{ContainerID: c.id, Process: proc})
	if err != nil {
		c.forget(req.ExecId)
		return nil, fmt.Errorf("start process %s of container %s: %w", req.ExecId, req.ContainerId, err)
	}
	c.mu.Lock()
	c.execs[p.id] = p
	c.mu.Unlock()
	s.tasks.Go(func() {
		<-p.child.Done()
		s.OOM.Check(c.id)
		p.exit()
		if c.is(removing) { // it was started while the container went away
			p.io.Close()
		}
	})
	return &emptypb.Empty{}, nil
}

func (s *service) exec(ctx context.Context, c *container, req *pb.ExecProcessRequest, e runner.Exec) (*process, error) {
	shown := s.Policy.Output(c.id, req.ExecId)
	io, err := s.openIO(e.Process.Terminal, shown, req.StdinPort, req.StdoutPort, req.StderrPort)
	if err != nil {
		return nil, err
	}
	e.Streams = io
	child, err := s.Runner.Exec(ctx, e)
	if err != nil {
		io.Close()
		return nil, err
	}
	return newProcess(req.ExecId, e.Process.Terminal, io, child), nil
}

// reserve claims an exec id in a running container.
func (c *container) reserve(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running {
		return fmt.Errorf("exec %s: container %s is %s: %w", id, c.id, c.state, errdefs.ErrFailedPrecondition)
	}
	if _, ok := c.execs[id]; ok || id == c.id {
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	c.execs[id] = nil
	return nil
}

func (c *container) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, id)
}

// retire removes an exec, of which only the exit code is kept.
func (c *container) retire(p *process) {
	p.io.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.id] != p {
		return
	}
	delete(c.execs, p.id)
	if len(c.retired) == maxRetired {
		c.retired = c.retired[1:]
	}
	c.retired = append(c.retired, exited{p.id, p.child.ExitCode()})
}

func (c *container) lateCode(id string) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.retired) - 1; i >= 0; i-- {
		if c.retired[i].id == id {
			return c.retired[i].code, true
		}
	}
	return 0, false
}

// SignalProcess sends a signal. The kill signal for the container as such reaches every process, as any does that is
// for all.
func (s *service) SignalProcess(ctx context.Context, req *pb.SignalProcessRequest) (*emptypb.Empty, error) {
	if req.Signal == 0 || req.Signal > 64 {
		return nil, fmt.Errorf("signal %d: %w", req.Signal, errdefs.ErrInvalidArgument)
	}
	c, p, err := s.process(req.ContainerId, req.ExecId)
	if err != nil {
		if c != nil {
			if _, late := c.lateCode(req.ExecId); late {
				return &emptypb.Empty{}, nil // it has ended
			}
		}
		return nil, err
	}
	if req.ExecId == "" && req.Signal == uint32(sigKill) {
		if err := c.group.Kill(); err != nil {
			return nil, fmt.Errorf("kill container %s: %w", c.id, err)
		}
	} else if req.ExecId == "" && req.All {
		c.freezing.Lock()
		defer c.freezing.Unlock()
		if err := c.group.Signal(ctx, unix.Signal(req.Signal)); err != nil {
			return nil, fmt.Errorf("signal every process of container %s: %w", c.id, err)
		}
		return &emptypb.Empty{}, nil
	}
	if err := p.child.Signal(unix.Signal(req.Signal)); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// outputGrace is how long the output of an exec that nobody reads by calls is kept after its exit.
const outputGrace = 10 * time.Second

// WaitProcess blocks until a process has ended. Any number of callers get the status.
func (s *service) WaitProcess(ctx context.Context, req *pb.WaitProcessRequest) (*pb.WaitProcessResponse, error) {
	c, p, err := s.process(req.ContainerId, req.ExecId)
	if err != nil {
		if c != nil {
			if code, ok := c.lateCode(req.ExecId); ok {
				return &pb.WaitProcessResponse{Status: int32(code)}, nil //nolint:gosec // 0 to 255
			}
		}
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.life.Done():
		return nil, fmt.Errorf("agent is shutting down: %w", errdefs.ErrUnavailable)
	}
	if p.id != "" {
		s.retireLater(c, p)
	}
	return &pb.WaitProcessResponse{Status: int32(p.child.ExitCode())}, nil //nolint:gosec // 0 to 255
}

// retireLater releases an exec whose exit was reported, once its output was handed over.
func (s *service) retireLater(c *container, p *process) {
	if !p.retiring.CompareAndSwap(false, true) {
		return
	}
	s.tasks.Go(func() {
		var grace <-chan time.Time
		if !p.io.Streamed() {
			t := time.NewTimer(outputGrace)
			defer t.Stop()
			grace = t.C
		}
		select {
		case <-p.io.Flushed():
		case <-p.io.Closed():
		case <-grace:
		case <-s.life.Done():
		}
		c.retire(p)
	})
}

// WriteStdin writes to a process's input; no data closes it.
func (s *service) WriteStdin(ctx context.Context, req *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
	_, p, err := s.process(req.ContainerId, req.ExecId)
	if err != nil {
		return nil, err
	}
	if len(req.Data) == 0 {
		p.io.CloseStdin()
		return &pb.WriteStreamResponse{}, nil
	}
	n, err := p.io.Write(ctx, req.Data)
	if err != nil {
		return nil, fmt.Errorf("write to process %q of container %s: %w", req.ExecId, req.ContainerId, err)
	}
	return &pb.WriteStreamResponse{Len: uint32(n)}, nil //nolint:gosec // bounded by the message
}

// ReadStdout reads from a process's output; no data means its end.
func (s *service) ReadStdout(ctx context.Context, req *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return s.read(ctx, req, stdio.Stdout)
}

// ReadStderr reads from a process's error output; no data means its end.
func (s *service) ReadStderr(ctx context.Context, req *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return s.read(ctx, req, stdio.Stderr)
}

func (s *service) read(ctx context.Context, req *pb.ReadStreamRequest, which stdio.Output) (*pb.ReadStreamResponse,
	error,
) {
	_, p, err := s.process(req.ContainerId, req.ExecId)
	if err != nil {
		return nil, err
	}
	b, err := p.io.Read(ctx, which, int(min(req.Len, math.MaxInt32)))
	if err != nil {
		return nil, fmt.Errorf("read from process %q of container %s: %w", req.ExecId, req.ContainerId, err)
	}
	return &pb.ReadStreamResponse{Data: b}, nil
}

// CloseStdin ends a process's input.
func (s *service) CloseStdin(_ context.Context, req *pb.CloseStdinRequest) (*emptypb.Empty, error) {
	_, p, err := s.process(req.ContainerId, req.ExecId)
	if err != nil {
		return nil, err
	}
	p.io.CloseStdin()
	return &emptypb.Empty{}, nil
}

// TtyWinResize sets the size of a process's terminal.
func (s *service) TtyWinResize(_ context.Context, req *pb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	if req.Row > math.MaxUint16 || req.Column > math.MaxUint16 {
		return nil, fmt.Errorf("terminal of %d rows, %d columns: %w", req.Row, req.Column, errdefs.ErrInvalidArgument)
	}
	_, p, err := s.process(req.ContainerId, req.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.io.Resize(uint16(req.Row), uint16(req.Column)); err != nil {
		return nil, fmt.Errorf("process %q of container %s: %w", req.ExecId, req.ContainerId, err)
	}
	return &emptypb.Empty{}, nil
}

// GetOOMEvent blocks until the kernel has killed in some container, and names it.
func (s *service) GetOOMEvent(ctx context.Context, _ *pb.GetOOMEventRequest) (*pb.OOMEvent, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.life, cancel)
	defer stop()
	id, err := s.OOM.Next(ctx)
	if err != nil {
		if s.life.Err() != nil {
			err = errors.Join(err, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("wait for a memory event: %w", err)
	}
	return &pb.OOMEvent{ContainerId: id}, nil
}
