// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/agent/guard"
	"github.com/coco-shim/coco/agent/sysctl"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/fsm"
)

// sandboxState is the life of the one sandbox of a guest.
type sandboxState int

const (
	sandboxNone sandboxState = iota
	sandboxCreating
	sandboxReady
	sandboxGone
)

func (s sandboxState) String() string {
	return [...]string{"absent", "being created", "ready", "destroyed"}[s]
}

type sandboxEvent string

const (
	sandboxCreate  sandboxEvent = "create"
	sandboxCreated sandboxEvent = "created"
	sandboxFailed  sandboxEvent = "creation failed"
	sandboxDestroy sandboxEvent = "destroy"
)

// sandboxTable: a guest has one sandbox in its life, and ends with it.
var sandboxTable = fsm.Table[sandboxState, sandboxEvent]{
	{State: sandboxNone, Event: sandboxCreate}:      sandboxCreating,
	{State: sandboxCreating, Event: sandboxCreated}: sandboxReady,
	{State: sandboxCreating, Event: sandboxFailed}:  sandboxNone,
	{State: sandboxNone, Event: sandboxDestroy}:     sandboxGone,
	{State: sandboxReady, Event: sandboxDestroy}:    sandboxGone,
}

type sandbox struct {
	state    sandboxState
	id       string
	hostname string
	ns       map[string]string // by type; "pid" only with a shared one
}

// sandboxStorage is the owner of the sandbox's own storages, as storage.Manager has it.
const sandboxStorage = ""

func (s *service) sandboxTo(e sandboxEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := sandboxTable.Next(s.sandbox.state, e)
	if err != nil {
		if e == sandboxCreate && s.sandbox.state != sandboxGone {
			return fmt.Errorf("sandbox %s is %s: %w", s.sandbox.id, s.sandbox.state, errdefs.ErrAlreadyExists)
		}
		return fmt.Errorf("sandbox is %s: %w", s.sandbox.state, errdefs.ErrFailedPrecondition)
	}
	s.sandbox.state = next
	return nil
}

// CreateSandbox prepares the resources that the pod's containers share.
func (s *service) CreateSandbox(ctx context.Context, req *pb.CreateSandboxRequest) (*emptypb.Empty, error) {
	if req.SandboxId != "" {
		if err := checkContainerID(req.SandboxId); err != nil {
			return nil, err
		}
	}
	if req.GuestHookPath != "" {
		return nil, no("hooks in the guest")
	}
	if err := errors.Join(guard.Hostname(req.Hostname), guard.Storages(req.Storages, s.RunDir+"/")); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", req.SandboxId, err)
	}
	if err := s.sandboxTo(sandboxCreate); err != nil {
		return nil, err
	}
	box, err := s.makeSandbox(ctx, req)
	if err != nil {
		_ = s.sandboxTo(sandboxFailed)
		return nil, fmt.Errorf("create sandbox %s: %w", req.SandboxId, err)
	}
	s.mu.Lock()
	box.state = s.sandbox.state
	s.sandbox = box
	s.mu.Unlock()
	return &emptypb.Empty{}, s.sandboxTo(sandboxCreated)
}

func (s *service) makeSandbox(ctx context.Context, req *pb.CreateSandboxRequest) (sandbox, error) {
	box := sandbox{id: req.SandboxId, hostname: req.Hostname}
	for _, m := range req.KernelModules {
		if err := s.Modules.Load(m.Name, m.Parameters...); err != nil {
			return box, err
		}
	}
	if len(req.Dns) > 0 {
		if err := s.Network.SetDNS(ctx, req.Dns); err != nil {
			return box, err
		}
	}
	if len(req.Storages) > 0 {
		if err := s.Modules.Wait(ctx); err != nil {
			return box, err
		}
		if err := s.Storage.Add(ctx, sandboxStorage, req.Storages); err != nil {
			return box, err
		}
	}
	ns, err := s.makeNamespaces(req)
	if err != nil {
		return box, errors.Join(err, s.Storage.Remove(ctx, sandboxStorage))
	}
	box.ns = ns
	return box, nil
}

// makeNamespaces makes the namespaces that the containers share. Sysctls of the network are set in the guest's own.
func (s *service) makeNamespaces(req *pb.CreateSandboxRequest) (map[string]string, error) {
	network, shared, err := sysctl.Split(req.Sysctls)
	if err != nil {
		return nil, err
	}
	if err := sysctl.Set(network); err != nil {
		return nil, err
	}
	ns, err := s.System.Namespaces(req.Hostname, shared)
	if err != nil {
		return nil, err
	}
	if req.SandboxPidns {
		if ns["pid"], err = s.System.SharedPIDs(); err != nil {
			return nil, err
		}
	}
	return ns, nil
}

// ready returns the sandbox for a container, with the pid namespace that it joins, if it joins one.
func (s *service) ready(req *pb.CreateContainerRequest) (sandbox, error) {
	s.mu.Lock()
	box := s.sandbox
	ns := map[string]string{"ipc": box.ns["ipc"], "uts": box.ns["uts"]}
	s.mu.Unlock()
	if box.state != sandboxReady {
		return box, fmt.Errorf("sandbox is %s: %w", box.state, errdefs.ErrFailedPrecondition)
	}
	box.ns = ns
	var err error
	switch {
	case req.PidContainer != "":
		ns["pid"], err = s.pidsOf(req.PidContainer)
	case req.SandboxPidns:
		ns["pid"], err = s.sharedPIDs()
	}
	return box, err
}

// sharedPIDs returns the sandbox's pid namespace, which is made when the first container asks for it:
// runtimes do not tell earlier that a pod shares its process ids.
func (s *service) sharedPIDs() (string, error) {
	s.pids.Lock()
	defer s.pids.Unlock()
	s.mu.Lock()
	p := s.sandbox.ns["pid"]
	s.mu.Unlock()
	if p != "" {
		return p, nil
	}
	p, err := s.System.SharedPIDs()
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandbox.ns["pid"] = p
	return p, nil
}

// pidsOf returns the pid namespace of a container that runs.
func (s *service) pidsOf(id string) (string, error) {
	c, err := s.container(id)
	if err != nil {
		return "", fmt.Errorf("process ids to join: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running {
		return "", fmt.Errorf("process ids to join: container %s is %s: %w", id, c.state, errdefs.ErrFailedPrecondition)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", c.init.child.Pid()), nil
}

// DestroySandbox kills every container and answers. The caller of Stopped then powers the machine off.
func (s *service) DestroySandbox(ctx context.Context, _ *pb.DestroySandboxRequest) (*emptypb.Empty, error) {
	if err := s.sandboxTo(sandboxDestroy); err != nil {
		return nil, err
	}
	s.mu.Lock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		if err := c.group.Kill(); err != nil {
			s.Log.Warn("kill container", "container", c.id, "error", err)
		}
	}
	close(s.stopped)
	return &emptypb.Empty{}, nil
}
