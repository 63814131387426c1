// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/stdio"
	"github.com/coco-shim/coco/virtcontainers"
	vcprocess "github.com/coco-shim/coco/virtcontainers/process"
)

// Exec records a further process. It starts with Start.
func (s *Service) Exec(_ context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	c, _, err := s.lookup(r.Id)
	if err != nil {
		return nil, err
	}
	if err := bundle.CheckName("exec id", r.ExecId); err != nil {
		return nil, err
	}
	if c.sandbox {
		return nil, fmt.Errorf("exec %s in sandbox %s: a sandbox has no processes in the guest: %w", r.ExecId, r.Id,
			errdefs.ErrFailedPrecondition)
	}
	if c.init.hasExited() {
		return nil, fmt.Errorf("exec %s: container %s has stopped: %w", r.ExecId, r.Id, errdefs.ErrFailedPrecondition)
	}
	var spec specs.Process
	if err := decodeJSON(r.Spec, "Process", &spec); err != nil {
		return nil, about(r.Id, err, "exec %s in container %s", r.ExecId, r.Id)
	}
	p := newProcess(r.ExecId, stdio.Config{
		Namespace: s.cfg.Namespace, ID: r.Id, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
		Terminal: r.Terminal, Log: s.log,
	})
	if err := c.addExec(p); err != nil {
		return nil, err
	}
	req := virtcontainers.ExecRequest{ID: r.ExecId, Process: &spec, Terminal: r.Terminal}
	req.Stdin, req.Stdout, req.Stderr = p.stdio.Wants()
	req.OneOutput = p.stdio.OneFile()
	guest, err := c.guest.Exec(req)
	if err != nil {
		c.removeExec(r.ExecId)
		return nil, about(r.Id, err, "exec %s in container %s", r.ExecId, r.Id)
	}
	p.setGuest(guest)
	s.cfg.Events.Send(&api.TaskExecAdded{ContainerId: r.Id, ExecId: r.ExecId})
	return &emptypb.Empty{}, nil
}

// Start starts an init or an exec.
func (s *Service) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	c, p, pod, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	settle, err := p.beginStart()
	if err != nil {
		return nil, about(r.Id, err, "start process %q in container %s", r.ExecId, r.Id)
	}
	ctx, cancel := s.detached(ctx, startTimeout)
	defer cancel()
	if r.ExecId == "" {
		err = s.startInit(ctx, c)
	} else {
		err = s.startExec(ctx, c, p, pod)
	}
	settle(err == nil)
	if err != nil {
		if r.ExecId != "" { // a client of containerd 1.6 waits for its end before it deletes it
			p.end(vcprocess.ExitStatus{Code: notStartedCode, At: time.Now()}, func() {})
		}
		return nil, about(r.Id, err, "start process %q in container %s", r.ExecId, r.Id)
	}
	return &api.StartResponse{Pid: c.pid}, nil
}

func (s *Service) startInit(ctx context.Context, c *container) error {
	if !c.sandbox {
		if _, err := c.guest.Init().Start(ctx); err != nil {
			return err
		}
		c.init.currentRelay().ProcessStarts()
	}
	s.cfg.Events.Send(&api.TaskStart{ContainerId: c.id, Pid: c.pid})
	return nil
}

func (s *Service) startExec(ctx context.Context, c *container, p *process, pod Pod) error {
	if c.init.hasExited() {
		return fmt.Errorf("the container has stopped: %w", errdefs.ErrFailedPrecondition)
	}
	guest, err := p.inGuest()
	if err != nil {
		return err
	}
	relay, err := stdio.Open(ctx, p.stdio)
	if err != nil {
		return err
	}
	if err := p.setRelay(relay); err != nil {
		return errors.Join(err, relay.Close())
	}
	streams, err := guest.Start(ctx)
	if err != nil {
		return errors.Join(err, relay.Close())
	}
	relay.Start(stdio.Streams(streams))
	relay.ProcessStarts()
	s.cfg.Events.Send(&api.TaskExecStarted{ContainerId: c.id, ExecId: p.exec, Pid: c.pid})
	s.watchProcess(c, p, pod) // publishes the exit after the start is settled
	return nil
}

// Kill sends a signal.
func (s *Service) Kill(ctx context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	c, p, _, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.hasExited() {
		return nil, fmt.Errorf("kill process %q in container %s: process already finished: %w", r.ExecId, r.Id,
			errdefs.ErrNotFound)
	}
	s.log.Debug("signal", "container", r.Id, "exec", r.ExecId, "signal", r.Signal)
	if c.sandbox {
		c.kill(r.Signal)
		return &emptypb.Empty{}, nil
	}
	guest, err := p.inGuest()
	if err == nil {
		err = guest.Kill(ctx, r.Signal, r.All)
	}
	if err != nil {
		return nil, about(r.Id, err, "kill process %q in container %s", r.ExecId, r.Id)
	}
	return &emptypb.Empty{}, nil
}

// kill applies a signal to a sandbox as the pause process would: it exits on SIGINT, SIGTERM and SIGKILL
// and, as the first process of its namespace, ignores signals without a handler.
func (c *container) kill(signal uint32) {
	var code uint32
	switch unix.Signal(signal) { // see above
	case unix.SIGTERM, unix.SIGINT:
	case unix.SIGKILL:
		code = killedCode
	default:
		return
	}
	select {
	case c.killed <- code:
	default: // it is on its way out
	}
}

// Delete frees an exec or a container. With the pod's own container goes the pod.
func (s *Service) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	c, p, pod, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.isAlive() {
		return nil, fmt.Errorf("delete process %q in container %s: it runs; kill it first: %w", r.ExecId, r.Id,
			errdefs.ErrFailedPrecondition)
	}
	client := ctx
	ctx, cancel := s.detached(ctx, stopTimeout)
	defer cancel()
	if r.ExecId != "" {
		err = s.deleteExec(ctx, c, p)
	} else {
		err = s.deleteContainer(ctx, c, pod)
	}
	if err != nil {
		return nil, about(r.Id, err, "delete process %q in container %s", r.ExecId, r.Id)
	}
	if client.Err() != nil { // it waits no more, as Docker after two seconds, and will not ask the shim to end
		s.Deserted()
	}
	return &api.DeleteResponse{Pid: c.pid, ExitStatus: p.status.Code, ExitedAt: timestamppb.New(p.status.At)}, nil
}

func (s *Service) deleteExec(ctx context.Context, c *container, p *process) error {
	guest, err := p.inGuest()
	if err == nil {
		_, err = guest.Delete(ctx)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	p.end(vcprocess.ExitStatus{Code: killedCode, At: time.Now()}, func() {}) // in case it never ran
	c.removeExec(p.exec)
	s.logClose(c, p.closeRelay())
	return nil
}

func (s *Service) deleteContainer(ctx context.Context, c *container, pod Pod) error {
	if !c.beginDelete() {
		return fmt.Errorf("it is being deleted: %w", errdefs.ErrFailedPrecondition)
	}
	defer c.endDelete()
	if err := s.freeContainer(ctx, c); err != nil {
		return err
	}
	select {
	case <-c.init.exited:
	case <-ctx.Done():
		return fmt.Errorf("wait for its exit: %w", ctx.Err())
	}
	s.logClose(c, c.closeRelays())
	s.mu.Lock()
	last := c.id == s.podID
	s.mu.Unlock()
	if last {
		if err := pod.Shutdown(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if last {
		s.podIs(podEnd)
	}
	delete(s.containers, c.id)
	s.mu.Unlock()
	s.cfg.Events.Send(&api.TaskDelete{
		ContainerId: c.id, Pid: c.pid, ExitStatus: c.init.status.Code, ExitedAt: timestamppb.New(c.init.status.At),
	})
	return nil
}

// freeContainer makes the pod forget the container, at most once.
func (s *Service) freeContainer(ctx context.Context, c *container) error {
	c.mu.Lock()
	freed := c.freed
	c.mu.Unlock()
	if freed {
		return nil
	}
	if c.sandbox {
		c.kill(uint32(unix.SIGKILL)) // a sandbox that was never started
	} else if _, err := c.guest.Init().Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	c.mu.Lock()
	c.freed = true
	c.mu.Unlock()
	return nil
}

func (c *container) beginDelete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return false
	}
	c.deleted = true
	return true
}

func (c *container) endDelete() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleted = false
}

// logClose reports what closing relays brought up. The container is gone all the same.
func (s *Service) logClose(c *container, err error) {
	if err != nil {
		s.log.Warn("close streams", "container", c.id, "error", err)
	}
}

// Shutdown ends the shim when it has no containers and no sandbox any more.
func (s *Service) Shutdown(ctx context.Context, _ *api.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	if len(s.containers) > 0 || s.held {
		s.mu.Unlock()
		return &emptypb.Empty{}, nil
	}
	s.stopping = true
	s.mu.Unlock()
	s.leave(ctx)
	return &emptypb.Empty{}, nil
}

// Deserted ends a shim that has nothing to serve and whose client is gone or never made a call. A containerd that
// restarts would keep such a shim until the sandbox, which was never created, is removed.
func (s *Service) Deserted() {
	s.mu.Lock()
	idle := len(s.containers) == 0 && !s.held && !s.stopping
	s.stopping = s.stopping || idle
	s.mu.Unlock()
	if idle {
		s.log.Info("nobody has asked for a pod, or who did has gone: the shim ends")
		s.leave(context.Background())
	}
}

// leave delivers the last events, then closes Done.
func (s *Service) leave(ctx context.Context) {
	flush, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := s.cfg.Events.Flush(flush); err != nil {
		s.log.Warn("events are late", "error", err)
	}
	s.once.Do(func() { close(s.done) })
}
