// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/agent/bundle"
	"github.com/coco-shim/coco/agent/cgroup"
	"github.com/coco-shim/coco/agent/guard"
	"github.com/coco-shim/coco/agent/ocispec"
	"github.com/coco-shim/coco/agent/runner"
	"github.com/coco-shim/coco/agent/stdio"
	"github.com/coco-shim/coco/agent/storage"
	"github.com/coco-shim/coco/agent/sysctl"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/undo"
)

// container is one container and its processes.
type container struct {
	id     string
	bundle string
	group  cgroup.Group
	undo   undo.Stack // what RemoveContainer releases, last first

	messagePath string   // the termination log's path in the container, if the host named one
	termination *os.File // the termination log, or nil; set before the container is created

	freezing sync.Mutex // held while the group is frozen or thawed

	mu      sync.Mutex
	state   state               // guarded by mu
	init    *process            // guarded by mu; set once created
	execs   map[string]*process // guarded by mu; nil value: being started
	retired []exited            // guarded by mu; execs that are gone
}

// CreateContainer prepares a container up to its init process, which waits for StartContainer.
func (s *service) CreateContainer(ctx context.Context, req *pb.CreateContainerRequest) (_ *emptypb.Empty, err error) {
	if err := checkContainerID(req.ContainerId); err != nil {
		return nil, err
	}
	if len(req.SharedMounts) > 0 {
		return nil, no("shared mounts")
	}
	spec, err := ocispec.Spec(req.OCI)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", req.ContainerId, err)
	}
	box, err := s.ready(req)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", req.ContainerId, err)
	}
	c, err := s.addContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	err = guard.Storages(req.Storages, c.bundle)
	s.copy.Use(c.id, sources(spec, req.Storages, c.bundle))
	c.undo.Push("forget sources", func(context.Context) error { s.copy.Unuse(c.id); return nil })
	if err == nil {
		err = s.build(ctx, c, req, spec, box)
	}
	if err != nil {
		err = fmt.Errorf("create container %s: %w", c.id, errors.Join(s.Storage.Corrupted(c.id), err))
		uerr := s.Policy.Undone(c.undo.Run(ctx))
		if uerr == nil {
			s.dropContainer(c)
			return nil, err
		}
		_ = c.to(evRemoveFailed) // the id is taken until RemoveContainer has cleaned up
		return nil, errors.Join(err, uerr)
	}
	return &emptypb.Empty{}, nil
}

func (s *service) addContainer(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.containers[id]; ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	c := &container{
		id: id, bundle: filepath.Join(s.RunDir, id),
		group: cgroup.At(s.CgroupRoot, cgroupPath(id)), execs: map[string]*process{},
	}
	s.containers[id] = c
	return c, nil
}

// cgroupPath is where a container's group is; the host's idea of it does not matter in here.
func cgroupPath(id string) string { return contract.CgroupBase + id }

func (s *service) dropContainer(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
}

// container finds a container.
func (s *service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// build does the work of CreateContainer; each step pushes its undo.
func (s *service) build(ctx context.Context, c *container, req *pb.CreateContainerRequest, spec *specs.Spec,
	box sandbox,
) error {
	io, err := s.openIO(spec.Process.Terminal, s.Policy.Output(c.id, ""), req.StdinPort, req.StdoutPort, req.StderrPort)
	if err != nil {
		return err
	}
	c.undo.Push("close streams", func(context.Context) error { io.Close(); return nil })
	if err := s.Modules.Wait(ctx); err != nil {
		return err
	}
	if err := s.mountRootfs(ctx, c, req, spec); err != nil {
		return err
	}
	if err := s.Storage.Devices(ctx, c.id, req.Devices, spec); err != nil {
		return err
	}
	c.messagePath = spec.Annotations[contract.TerminationMessagePath]
	sysctls, err := adapt(spec, surroundings{
		bundle: c.bundle, hostname: box.hostname, cgroup: cgroupPath(c.id), ns: box.ns,
	})
	if err != nil {
		return err
	}
	if err := s.prepare(spec); err != nil {
		return err
	}
	if err := sysctl.Set(sysctls); err != nil {
		return err
	}
	child, err := s.run(ctx, c, runner.Container{ID: c.id, Bundle: c.bundle, Spec: spec, Streams: io})
	if err != nil {
		return err
	}
	c.undo.Push("delete container", func(ctx context.Context) error { return s.Runner.Delete(ctx, c.id) })
	if err := s.OOM.Add(c.id, c.group); err != nil {
		s.Log.Warn("no memory events", "container", c.id, "error", err)
	}
	c.undo.Push("forget memory events", func(context.Context) error { s.OOM.Remove(c.id); return nil })
	s.adopt(c, newProcess("", spec.Process.Terminal, io, child))
	return nil
}

// run has the OCI runtime create the container, from sources that cannot be exchanged meanwhile, with its secrets.
func (s *service) run(ctx context.Context, c *container, rc runner.Container) (child runner.Process, err error) {
	staged, err := s.stage(c, rc.Spec.Mounts)
	if err != nil {
		return nil, err
	}
	// The unmounts run at once. Those that fail are repeated at the container's end; the request does not fail.
	c.undo.Push("unmount sources", staged.Run)
	own, err := s.Secrets.Add(ctx, c.id, rc.Spec, &c.undo)
	if err == nil {
		rc.Spec.Mounts = append(rc.Spec.Mounts, own...) // files of the agent's own
		child, err = s.Runner.Create(ctx, rc)
	}
	if uerr := staged.Run(context.WithoutCancel(ctx)); uerr != nil {
		s.Log.Warn("sources of mounts stay mounted", "container", c.id, "error", uerr)
	}
	return child, err
}

// sources are the paths that a container is made of.
func sources(spec *specs.Spec, storages []*pb.Storage, bundle string) []string {
	root := spec.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(bundle, root)
	}
	out := []string{root}
	for _, m := range spec.Mounts {
		out = append(out, m.Source)
	}
	for _, st := range storages {
		out = append(out, storage.Sources(st)...)
	}
	return out
}

// adopt makes p the container's init process and watches it.
func (s *service) adopt(c *container, p *process) {
	c.mu.Lock()
	c.init = p
	c.mu.Unlock()
	_ = c.to(evCreated)
	s.tasks.Go(func() {
		<-p.child.Done()
		s.OOM.Check(c.id)                      // the news of the kill comes before the news of the exit
		if err := c.group.Kill(); err != nil { // a shared pid namespace leaves the others alive
			s.Log.Warn("kill what init left", "container", c.id, "error", err)
		}
		s.Policy.Exited(c.id, p.child.ExitCode())
		_ = c.to(evExited)
		p.exit()
	})
}

// mountRootfs makes the bundle and mounts the container's storages; the root file system ends up
// at <bundle>/rootfs.
func (s *service) mountRootfs(ctx context.Context, c *container, req *pb.CreateContainerRequest,
	spec *specs.Spec,
) error {
	rootfs := filepath.Join(c.bundle, contract.RootfsName)
	if err := bundle.Make(c.bundle); err != nil {
		return err
	}
	c.undo.Push("remove bundle", func(context.Context) error { return bundle.Remove(c.bundle) })
	if err := s.Storage.Add(ctx, c.id, req.Storages); err != nil {
		return err
	}
	c.undo.Push("unmount storages", func(ctx context.Context) error { return s.Storage.Remove(ctx, c.id) })
	if err := s.mountRoot(c, spec.Root.Path, rootfs); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	return nil
}

// openIO claims the streams that a request names and makes the process's side of them. Where the host must not have the
// output, its streams end at once and what the process writes is discarded.
func (s *service) openIO(terminal, output bool, stdin, stdout, stderr uint32) (*stdio.IO, error) {
	if terminal {
		stderr = 0
	}
	one := stdout != 0 && stdout == stderr
	if one {
		stderr = 0
	}
	conns, err := s.streams.Claim(stdin, stdout, stderr)
	if err != nil {
		return nil, err
	}
	return stdio.New(stdio.Wiring{
		Terminal: terminal, Discard: !output, OneOutput: one, Streams: stdin != 0 || stdout != 0 || stderr != 0,
		Stdin: conns[0], Stdout: conns[1], Stderr: conns[2],
	})
}

// StartContainer lets the init process run.
func (s *service) StartContainer(ctx context.Context, req *pb.StartContainerRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.to(evStart); err != nil {
		return nil, err
	}
	err = s.Runner.Start(ctx, c.id)
	c.settle(err == nil, evStarted, evStartFailed)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// RemoveContainer kills the container's processes and releases its resources. After an error it can be
// repeated and continues where it stopped.
func (s *service) RemoveContainer(ctx context.Context, req *pb.RemoveContainerRequest) (*emptypb.Empty, error) {
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	ended, err := s.turn.End(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	c, err := s.container(req.ContainerId)
	if err != nil {
		if ended {
			return &emptypb.Empty{}, nil
		}
		return nil, err
	}
	if err := c.to(evRemove); err != nil {
		return nil, err
	}
	if err := s.tearDown(ctx, c); err != nil {
		_ = c.to(evRemoveFailed)
		return nil, fmt.Errorf("remove container %s: %w", c.id, err)
	}
	s.dropContainer(c)
	return &emptypb.Empty{}, nil
}

func (s *service) tearDown(ctx context.Context, c *container) error {
	if err := c.group.Kill(); err != nil {
		return err
	}
	if p := c.processes(); len(p) > 0 {
		_ = p[0].child.Signal(sigKill) // init, where there is no cgroup.kill; ESRCH: it has ended
	}
	for _, p := range c.processes() {
		select {
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for process %q: %w", p.id, ctx.Err())
		}
		if p.id != "" {
			p.io.Close()
		}
	}
	done, err := s.turn.Take(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := s.Policy.Undone(c.undo.Run(ctx)); err != nil {
		return err
	}
	return s.copy.Forget(c.id)
}

// PauseContainer freezes the container's processes.
func (s *service) PauseContainer(ctx context.Context, req *pb.PauseContainerRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.to(evPause); err != nil {
		return nil, err
	}
	c.freezing.Lock()
	defer c.freezing.Unlock()
	err = c.group.Freeze(ctx, true)
	if err != nil {
		err = errors.Join(err, c.group.Freeze(context.WithoutCancel(ctx), false))
	}
	c.settle(err == nil, evPaused, evPauseFailed)
	if err != nil {
		return nil, fmt.Errorf("pause container %s: %w", c.id, err)
	}
	return &emptypb.Empty{}, nil
}

// ResumeContainer thaws the container's processes.
func (s *service) ResumeContainer(ctx context.Context, req *pb.ResumeContainerRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.to(evResume); err != nil {
		return nil, err
	}
	c.freezing.Lock()
	defer c.freezing.Unlock()
	err = c.group.Freeze(ctx, false)
	c.settle(err == nil, evResumed, evResumeFailed)
	if err != nil {
		return nil, fmt.Errorf("resume container %s: %w", c.id, err)
	}
	return &emptypb.Empty{}, nil
}

// UpdateContainer changes the limits of a container.
func (s *service) UpdateContainer(_ context.Context, req *pb.UpdateContainerRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	res, err := ocispec.Resources(req.Resources)
	if err != nil {
		return nil, err
	}
	if err := c.group.Update(res); err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	return &emptypb.Empty{}, nil
}
