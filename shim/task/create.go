// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/internal/brief"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/stdio"
	"github.com/coco-shim/coco/virtcontainers"
)

// maxSpec bounds the OCI spec; containerd's own messages hold 4 MiB.
const maxSpec = 16 << 20

// Create makes a container, and first of all its pod.
func (s *Service) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	if r.Checkpoint != "" {
		return nil, fmt.Errorf("create %s from a checkpoint: a VM's processes cannot be restored: %w", r.Id,
			errdefs.ErrNotImplemented)
	}
	if err := bundle.CheckName("container id", r.Id); err != nil {
		return nil, err
	}
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", r.Id, err)
	}
	role, err := bundle.RoleOf(r.Id, spec.Annotations)
	if err != nil {
		return nil, err
	}
	client := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()

	c := &container{
		id: r.Id, dir: bundle.Dir(r.Bundle), sandbox: role.Sandbox, creating: true, hostPS: bundle.UsesHostPS(spec),
		execs: map[string]*process{}, killed: make(chan uint32, 1),
		init: newProcess("", stdio.Config{
			Namespace: s.cfg.Namespace, ID: r.Id, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
			Terminal: r.Terminal, Log: s.log,
		}),
	}
	if err := s.claim(c, role.PodID); err != nil {
		return nil, err
	}
	s.complete(spec)
	pod, err := s.create(ctx, c, role, spec, r)
	if err != nil {
		s.unclaim(c)
		if errors.Is(client.Err(), context.Canceled) { // it hung up
			s.Deserted()
		}
		return nil, about(r.Id, err, "create %s", r.Id)
	}
	s.cfg.Events.Send(&api.TaskCreate{
		ContainerId: r.Id, Bundle: r.Bundle, Rootfs: r.Rootfs, Pid: c.pid,
		Io: &api.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	s.watchProcess(c, c.init, pod)
	s.settled(c)
	return &api.CreateTaskResponse{Pid: c.pid}, nil
}

// claim reserves the id, and the making of the pod if there is none.
func (s *Service) claim(c *container, podID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return fmt.Errorf("create %s: the shim is stopping: %w", c.id, errdefs.ErrUnavailable)
	case s.containers[c.id] != nil || s.held && c.id == s.podID:
		return fmt.Errorf("container %s: %w", c.id, errdefs.ErrAlreadyExists)
	case s.podState == podMaking:
		return fmt.Errorf("create %s: pod %s is still being made: %w", c.id, s.podID, errdefs.ErrFailedPrecondition)
	case s.podState == podAbsent && podID != c.id:
		return fmt.Errorf("create %s: its sandbox %s does not run here: %w", c.id, podID, errdefs.ErrFailedPrecondition)
	case s.podState == podEnded:
		return fmt.Errorf("create %s: pod %s has ended: %w", c.id, s.podID, errdefs.ErrFailedPrecondition)
	case s.podState == podRunning && podID != s.podID:
		return fmt.Errorf("create %s of pod %s: this shim serves pod %s: %w", c.id, podID, s.podID,
			errdefs.ErrFailedPrecondition)
	}
	if s.podState == podAbsent {
		s.podIs(podMake)
		s.podID = podID
	}
	s.containers[c.id] = c
	return nil
}

func (s *Service) unclaim(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	if c.id == s.podID {
		s.podIs(podFailed)
	}
}

func (s *Service) settled(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.creating = false
	if c.id == s.podID {
		s.podIs(podMade)
	}
}

// create acquires everything that a container has. On error nothing is left.
func (s *Service) create(ctx context.Context, c *container, role bundle.Role, spec *specs.Spec,
	r *api.CreateTaskRequest,
) (_ Pod, err error) {
	var u undo.Stack
	defer u.RunOnError(&err)
	if !role.Sandbox {
		relay, err := stdio.Open(ctx, c.init.stdio)
		if err != nil {
			return nil, err
		}
		u.Push("close streams", func(context.Context) error { return relay.Close() })
		if err := c.init.setRelay(relay); err != nil {
			return nil, err
		}
	}
	req := containerRequest(r, spec, c.init.stdio)
	pod, err := s.podFor(ctx, role, req, r, &u)
	if err != nil {
		return nil, err
	}
	c.pid = uint32(pod.PID()) //nolint:gosec // a pid
	if err := c.dir.WriteInit(c.pid); err != nil {
		return nil, err
	}
	if role.Sandbox {
		return pod, nil
	}
	guest, streams, err := pod.CreateContainer(ctx, req)
	if err != nil {
		return nil, err
	}
	c.guest = guest
	c.init.setGuest(guest.Init())
	c.init.currentRelay().Start(stdio.Streams(streams))
	return pod, nil
}

// podFor returns the pod, making it for its first container.
func (s *Service) podFor(ctx context.Context, role bundle.Role, req virtcontainers.ContainerRequest,
	r *api.CreateTaskRequest, u *undo.Stack,
) (Pod, error) {
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod != nil {
		return pod, nil
	}
	opts, err := DecodeOptions(r.Options)
	if err != nil {
		return nil, err
	}
	pr := PodRequest{ID: r.Id, Bundle: r.Bundle, Spec: req.Spec, Options: opts, OnOOM: s.onOOM}
	if !role.Sandbox {
		pr.First = &req
	}
	pod, err = s.cfg.MakePod(ctx, pr)
	if err != nil {
		if role.Sandbox {
			err = s.forEvent(r.Id, err)
		}
		return nil, err
	}
	u.Push("end pod", func(ctx context.Context) error {
		s.setPod(nil)
		return pod.Shutdown(ctx)
	})
	if !s.setPod(pod) {
		return nil, fmt.Errorf("the shim was told to stop: %w", errdefs.ErrUnavailable)
	}
	return pod, nil
}

// forEvent shortens the error of a CRI sandbox to the length that a Kubernetes event shows. The log has the full text.
func (s *Service) forEvent(id string, err error) error {
	s.log.Error("pod failed", "pod", id, "error", err)
	return brief.Error(err)
}

// setPod makes the pod known, unless Stop would not see it any more.
func (s *Service) setPod(pod Pod) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pod = pod
	return pod == nil || !s.stopping
}

func (s *Service) onOOM(containerID string) {
	s.cfg.Events.Send(&api.TaskOOM{ContainerId: containerID})
}

func containerRequest(r *api.CreateTaskRequest, spec *specs.Spec, io stdio.Config) virtcontainers.ContainerRequest {
	req := virtcontainers.ContainerRequest{ID: r.Id, Bundle: r.Bundle, Spec: spec, Terminal: r.Terminal}
	req.Stdin, req.Stdout, req.Stderr = io.Wants()
	req.OneOutput = io.OneFile()
	for _, m := range r.Rootfs {
		req.Rootfs = append(req.Rootfs, virtcontainers.Mount{
			Type: m.Type, Source: m.Source, Target: m.Target,
			Options: m.Options,
		})
	}
	return req
}

func readSpec(dir string) (*specs.Spec, error) {
	path := filepath.Join(dir, "config.json")
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("OCI spec: %w", classifyMissing(err))
	}
	if info.Size() > maxSpec {
		return nil, fmt.Errorf("OCI spec %s has %d bytes, at most %d are read: %w", path, info.Size(), maxSpec,
			errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("OCI spec: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("OCI spec %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

func classifyMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
