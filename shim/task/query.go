// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/stats"
	vcprocess "github.com/coco-shim/coco/virtcontainers/process"
)

// State returns the state of a process. It is stopped once its exit has been published, not before.
func (s *Service) State(_ context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	c, p, _, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	id := r.ExecId
	if id == "" {
		id = r.Id
	}
	resp := &api.StateResponse{
		Id: id, ExecId: r.ExecId, Bundle: string(c.dir), Pid: c.pid, Status: api.Status_CREATED,
		Stdin: p.stdio.Stdin, Stdout: p.stdio.Stdout, Stderr: p.stdio.Stderr, Terminal: p.stdio.Terminal,
	}
	switch {
	case p.hasExited():
		resp.Status = api.Status_STOPPED
		resp.ExitStatus = p.status.Code
		resp.ExitedAt = timestamppb.New(p.status.At)
	case p.wasStarted():
		resp.Status = api.Status_RUNNING
		if !c.sandbox && p.exec == "" {
			if st, _ := c.guest.Init().State(); st == vcprocess.Paused {
				resp.Status = api.Status_PAUSED
			}
		}
	}
	return resp, nil
}

// Wait waits for the exit of a process. The process ends with a caller that stands for it on the host: see
// bundle.OwnerKey.
func (s *Service) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	_, p, _, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		if md, ok := ttrpc.GetMetadata(ctx); ok {
			if _, owner := md.Get(bundle.OwnerKey); owner {
				s.orphaned(ctx, r)
			}
		}
		return nil, ctx.Err()
	}
	return &api.WaitResponse{ExitStatus: p.status.Code, ExitedAt: timestamppb.New(p.status.At)}, nil
}

// orphaned kills a process whose owner has gone.
func (s *Service) orphaned(ctx context.Context, r *api.WaitRequest) {
	s.log.Info("the process that stands for it on the host has gone: kill", "container", r.Id, "exec", r.ExecId)
	ctx, cancel := s.detached(ctx, stopTimeout)
	defer cancel()
	_, err := s.Kill(ctx, &api.KillRequest{
		Id: r.Id, ExecId: r.ExecId, Signal: uint32(unix.SIGKILL), All: r.ExecId == "",
	})
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("a process outlives its owner", "container", r.Id, "exec", r.ExecId, "error", err)
	}
}

// maxPids bounds the list of processes in a guest's answer. It is Linux' default limit of pids.
const maxPids = 32 << 10

// Pids lists a container's processes by their numbers in the guest, as far as its agent reports them. The first, its
// init, goes by the number that containerd knows it by. Engines that would show the host's processes of these numbers
// get an error instead, which docker top prints.
func (s *Service) Pids(ctx context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	c, _, err := s.lookup(r.Id)
	if err != nil {
		return nil, err
	}
	resp := &api.PidsResponse{}
	if c.init.hasExited() {
		return resp, nil
	}
	if c.hostPS {
		return nil, fmt.Errorf("the processes of container %s run in a VM, where the host's ps does not see them: "+
			"use exec CONTAINER ps instead of top: %w", r.Id, errdefs.ErrNotImplemented)
	}
	pids := []uint32{c.pid}
	if !c.sandbox {
		st, err := c.guest.Stats(ctx)
		if err != nil {
			return nil, about(r.Id, err, "list processes of container %s", r.Id)
		}
		if in := st.GetPids(); len(in) > 0 {
			pids = in[:min(len(in), maxPids)]
		}
	}
	slices.Sort(pids)
	for i, pid := range pids {
		if i == 0 {
			pid = c.pid
		}
		resp.Processes = append(resp.Processes, &api.ProcessInfo{Pid: pid})
	}
	return resp, nil
}

// Pause stops a container's processes for a while.
func (s *Service) Pause(ctx context.Context, r *api.PauseRequest) (*emptypb.Empty, error) {
	guest, err := s.inGuest(r.Id, "pause")
	if err != nil {
		return nil, err
	}
	if err := guest.Pause(ctx); err != nil {
		return nil, about(r.Id, err, "pause container %s", r.Id)
	}
	s.cfg.Events.Send(&api.TaskPaused{ContainerId: r.Id})
	return &emptypb.Empty{}, nil
}

// Resume lets them go on.
func (s *Service) Resume(ctx context.Context, r *api.ResumeRequest) (*emptypb.Empty, error) {
	guest, err := s.inGuest(r.Id, "resume")
	if err != nil {
		return nil, err
	}
	if err := guest.Resume(ctx); err != nil {
		return nil, about(r.Id, err, "resume container %s", r.Id)
	}
	s.cfg.Events.Send(&api.TaskResumed{ContainerId: r.Id})
	return &emptypb.Empty{}, nil
}

// inGuest finds a container that has processes.
func (s *Service) inGuest(id, what string) (Container, error) {
	c, _, err := s.lookup(id)
	if err != nil {
		return nil, err
	}
	if c.sandbox {
		return nil, fmt.Errorf("%s %s: a sandbox has no processes in the guest: %w", what, id, errdefs.ErrFailedPrecondition)
	}
	if c.init.hasExited() {
		return nil, fmt.Errorf("%s: container %s has stopped: %w", what, id, errdefs.ErrFailedPrecondition)
	}
	return c.guest, nil
}

// ResizePty changes the size of a terminal.
func (s *Service) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	c, p, _, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if c.sandbox || !p.stdio.Terminal {
		return nil, fmt.Errorf("resize terminal of process %q in container %s: it has none: %w", r.ExecId, r.Id,
			errdefs.ErrFailedPrecondition)
	}
	if p.hasExited() {
		return nil, fmt.Errorf("resize terminal of process %q in container %s: it has ended: %w", r.ExecId, r.Id,
			errdefs.ErrFailedPrecondition)
	}
	guest, err := p.inGuest()
	if err == nil {
		err = guest.Resize(ctx, r.Width, r.Height)
	}
	if err != nil {
		return nil, about(r.Id, err, "resize terminal of process %q in container %s", r.ExecId, r.Id)
	}
	return &emptypb.Empty{}, nil
}

// CloseIO ends a process's input.
func (s *Service) CloseIO(_ context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	_, p, _, err := s.process(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if r.Stdin {
		if err := p.closeStdin(); err != nil {
			return nil, fmt.Errorf("close stdin of process %q in container %s: %w", r.ExecId, r.Id, err)
		}
	}
	return &emptypb.Empty{}, nil
}

// Checkpoint is not possible.
func (s *Service) Checkpoint(_ context.Context, r *api.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, fmt.Errorf("checkpoint %s: the processes of a VM cannot be checkpointed: %w", r.Id,
		errdefs.ErrNotImplemented)
}

// Update changes a container's limits.
func (s *Service) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	var res specs.LinuxResources
	if err := decodeJSON(r.Resources, "LinuxResources", &res); err != nil {
		return nil, about(r.Id, err, "update %s", r.Id)
	}
	c, _, err := s.lookup(r.Id)
	if err != nil {
		return nil, err
	}
	if c.sandbox {
		return &emptypb.Empty{}, nil // a VM's shape is fixed at its start; the containers' limits are what counts
	}
	guest, err := s.inGuest(r.Id, "update")
	if err != nil {
		return nil, err
	}
	if err := guest.Update(ctx, &res); err != nil {
		return nil, about(r.Id, err, "update container %s", r.Id)
	}
	return &emptypb.Empty{}, nil
}

// Stats measures a container, or for a sandbox the pod's use of the node.
func (s *Service) Stats(ctx context.Context, r *api.StatsRequest) (*api.StatsResponse, error) {
	c, pod, err := s.lookup(r.Id)
	if err != nil {
		return nil, err
	}
	if c.init.hasExited() {
		return nil, fmt.Errorf("measure: container %s has stopped: %w", r.Id, errdefs.ErrNotFound)
	}
	if c.sandbox {
		data, err := stats.Process(pod.PID())
		if err != nil {
			return nil, about(r.Id, err, "measure sandbox %s", r.Id)
		}
		return &api.StatsResponse{Stats: data}, nil
	}
	st, err := c.guest.Stats(ctx)
	if err != nil {
		return nil, about(r.Id, err, "measure container %s", r.Id)
	}
	return &api.StatsResponse{Stats: stats.Container(st)}, nil
}

// Connect returns the shim's pid, also for an unknown container: containerd calls it to find out whether a shim
// answers.
func (s *Service) Connect(_ context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	resp := &api.ConnectResponse{ShimPid: uint32(os.Getpid())} //nolint:gosec // a pid
	if c, _, err := s.lookup(r.Id); err == nil {
		resp.TaskPid = c.pid
	}
	return resp, nil
}
