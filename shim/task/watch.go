// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
	vcprocess "github.com/coco-shim/coco/virtcontainers/process"
)

const (
	killedCode     = 128 + uint32(unix.SIGKILL)
	notStartedCode = 255 // of an exec whose start failed
)

// watchProcess waits for the exit of a process and publishes it.
func (s *Service) watchProcess(c *container, p *process, pod Pod) {
	p.setWatched()
	s.watch(func(ctx context.Context) {
		st := s.await(ctx, c, p, pod)
		p.currentRelay().Drain(ctx)
		p.awaitStart()
		if p.exec == "" {
			s.awaitExecs(ctx, c)
		}
		s.publishExit(c, p, st)
		if p.exec == "" && s.isAlone(c) {
			s.endVM(ctx, c, pod)
		}
	})
}

// isAlone reports whether a container is a pod of its own.
func (s *Service) isAlone(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !c.sandbox && c.id == s.podID
}

// endVM ends the VM of a pod of one that has exited. Output that its reader has not taken yet is in the guest: the VM
// waits for it, at most until Delete.
func (s *Service) endVM(ctx context.Context, c *container, pod Pod) {
	for _, p := range append(c.listExecs(), c.init) {
		select {
		case <-p.currentRelay().Drained():
		case <-pod.Done():
			return
		case <-ctx.Done():
			return
		}
	}
	ctx, cancel := s.detached(ctx, stopTimeout)
	defer cancel()
	if err := pod.EndVM(ctx); err != nil {
		s.log.Warn("the VM of an ended container stays until it is deleted", "container", c.id, "error", err)
	}
}

// await returns when the process has ended.
func (s *Service) await(ctx context.Context, c *container, p *process, pod Pod) vcprocess.ExitStatus {
	if c.sandbox {
		return awaitSandbox(ctx, c, pod)
	}
	var st vcprocess.ExitStatus
	guest, err := p.inGuest()
	if err == nil {
		st, err = guest.Wait(ctx)
	}
	if err == nil && st.At.IsZero() {
		st.At = time.Now()
	}
	if err != nil {
		// It was deleted before a start, or its exit code is lost.
		s.log.Debug("wait for process", "container", c.id, "exec", p.exec, "error", err)
		return vcprocess.ExitStatus{Code: killedCode, At: time.Now()}
	}
	return st
}

// awaitSandbox waits until the sandbox was killed or its VM has died.
func awaitSandbox(ctx context.Context, c *container, pod Pod) vcprocess.ExitStatus {
	select {
	case code := <-c.killed:
		return vcprocess.ExitStatus{Code: code, At: time.Now()}
	case <-pod.Done():
	case <-ctx.Done():
	}
	st := vcprocess.ExitStatus{Code: killedCode, At: time.Now()}
	if err := pod.Err(); err != nil {
		st.Reason = err.Error()
	}
	return st
}

// awaitExecs waits until the exits of a container's execs are published. They end with the init of their PID namespace,
// so the wait is short; the limit is for a faulty guest.
func (s *Service) awaitExecs(ctx context.Context, c *container) {
	limit := time.NewTimer(execsTimeout)
	defer limit.Stop()
	for _, p := range c.listExecs() {
		p.awaitStart()
		if !p.isWatched() {
			continue
		}
		select {
		case <-p.exited:
		case <-ctx.Done():
			return
		case <-limit.C:
			s.log.Warn("exec outlives its container: exit published first", "container", c.id, "exec", p.exec)
			return
		}
	}
}

func (s *Service) publishExit(c *container, p *process, st vcprocess.ExitStatus) {
	id := p.exec
	if id == "" {
		id = c.id
		if err := c.dir.WriteExit(bundle.Exit{Status: st.Code, At: st.At}); err != nil {
			s.log.Warn("exit not recorded in the bundle", "container", c.id, "error", err)
		}
	}
	if st.Reason != "" {
		s.log.Error("process ended with its VM", "container", c.id, "exec", p.exec, "reason", st.Reason)
	}
	p.end(st, func() {
		s.cfg.Events.Send(&api.TaskExit{
			ContainerId: c.id, Id: id, Pid: c.pid, ExitStatus: st.Code, ExitedAt: timestamppb.New(st.At),
		})
	})
	s.log.Debug("exit", "container", c.id, "exec", p.exec, "status", st.Code)
}
