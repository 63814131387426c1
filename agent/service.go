// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent serves the guest's side of the agent protocol: sandbox, containers, processes and
// their streams. It decides and keeps state. The packages below it change the machine; it reaches
// them through narrow interfaces.
//
// Lifecycle: NewServer makes the Server, which is the only way in from the host. Serve serves it, Stopped is closed
// once the host has asked to destroy the sandbox, Close ends the remaining containers.
package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/burst"
	"github.com/coco-shim/coco/agent/cgroup"
	"github.com/coco-shim/coco/agent/copyin"
	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/agent/runner"
	"github.com/coco-shim/coco/agent/stdio"
	"github.com/coco-shim/coco/agent/turns"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/undo"
)

// Runner runs containers; package runner implements it.
type Runner interface {
	Create(context.Context, runner.Container) (runner.Process, error)
	Start(ctx context.Context, id string) error
	Exec(context.Context, runner.Exec) (runner.Process, error)
	Delete(ctx context.Context, id string) error
}

// Storage turns storages into mounts; storage.Manager implements it.
type Storage interface {
	// Fetch gets the images among the storages that the guest pulls. Nothing is mounted.
	Fetch(ctx context.Context, list []*pb.Storage) error
	Add(ctx context.Context, cid string, list []*pb.Storage) error
	Remove(ctx context.Context, cid string) error
	// Devices puts the devices' numbers in this guest into the specification.
	Devices(ctx context.Context, cid string, list []*pb.Device, spec *specs.Spec) error
	// Corrupted names the layers of a container that failed verification.
	Corrupted(cid string) error
}

// Network configures the guest's network; package netcfg implements it.
type Network interface {
	UpdateInterface(context.Context, *types.Interface) (*types.Interface, error)
	UpdateRoutes(context.Context, *pb.Routes) (*pb.Routes, error)
	ListInterfaces(context.Context) (*pb.Interfaces, error)
	ListRoutes(context.Context) (*pb.Routes, error)
	AddNeighbors(context.Context, *pb.ARPNeighbors) error
	SetDNS(ctx context.Context, lines []string) error
}

// Modules loads kernel modules; boot.Loader implements it.
type Modules interface {
	Wait(ctx context.Context) error
	Load(name string, params ...string) error
	// Open lets the kernel load modules on demand, where that is possible, and loads those of the names that there are.
	Open(names ...string) error
}

// Secrets gets the secrets of a container before it is created; secrets.Store implements it.
type Secrets interface {
	Add(ctx context.Context, id string, spec *specs.Spec, u *undo.Stack) ([]specs.Mount, error)
}

// Ports opens ports to the host: PortForward lets it connect to the services that listen on the guest's loopback
// address, Resolver lets the guest's processes ask it for names.
type Ports struct{ PortForward, Resolver bool }

// OOM reports groups in which the kernel killed; cgroup.OOMWatcher implements it.
type OOM interface {
	Add(name string, g cgroup.Group) error
	Remove(name string)
	Check(name string)
	Next(ctx context.Context) (string, error)
}

// System has the operations on the machine as a whole.
type System interface {
	SetClock(sec, usec int64) error
	AddEntropy(data []byte) error
	// Namespaces makes the namespaces that the sandbox's containers share, and returns their paths
	// by type. The sysctls are set in them.
	Namespaces(hostname string, sysctls map[string]string) (map[string]string, error)
	// SharedPIDs makes a pid namespace with an init of its own, and returns its path.
	SharedPIDs() (string, error)
}

// Config has the dependencies of a Server.
type Config struct {
	Runner     Runner
	Storage    Storage
	Network    Network
	Modules    Modules
	OOM        OOM
	Secrets    Secrets
	System     System
	CgroupRoot string
	RunDir     string // contract.GuestRoot, but for tests
	Ports
	// Policy decides about each request.
	Policy gate.Policy
	// Confidential says that the guest runs in a TEE.
	Confidential bool
	Version      string
	Closed       bool // the host must learn nothing from the console
	Log          *slog.Logger
}

// service implements grpc.AgentService and grpc.Health. Requests reach it through Server.
type service struct {
	unsupported
	Config
	copy    *copyin.Receiver
	root    copyin.Root   // of the only container
	streams *stdio.Broker // byte streams that the host has opened, until a request claims them
	bursts  burst.Watch   // of big requests

	stopped chan struct{}  // closed by DestroySandbox
	tasks   sync.WaitGroup // watchers of processes
	life    context.Context
	end     context.CancelFunc

	turn *turns.Turns // held while a request changes the guest
	pids sync.Mutex   // held while the shared pid namespace is made

	mu         sync.Mutex
	sandbox    sandbox               // guarded by mu
	containers map[string]*container // guarded by mu
}

var (
	_ pb.AgentServiceService = (*service)(nil)
	_ pb.HealthService       = (*service)(nil)
)

func newService(cfg Config) *service {
	cfg.RunDir = cmp.Or(cfg.RunDir, contract.GuestRoot)
	life, end := context.WithCancel(context.Background())
	return &service{
		Config: cfg, copy: copyin.New(cfg.RunDir + "/" + contract.FilesName), streams: stdio.NewBroker(cfg.Policy.Stream),
		stopped: make(chan struct{}), life: life, end: end, turn: turns.New(),
		containers: map[string]*container{},
	}
}

// close ends blocked calls and waits, until ctx is done, for processes to end.
func (s *service) close(ctx context.Context) error {
	s.end()
	idle := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for processes to end: %w", ctx.Err())
	}
}

// Check answers that the agent serves.
func (s *service) Check(context.Context, *pb.CheckRequest) (*pb.HealthCheckResponse, error) {
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

// protocolVersion is the answer of every agent of this protocol. There is no negotiation.
const protocolVersion = "0.0.1"

// Version answers the versions of protocol and agent.
func (s *service) Version(context.Context, *pb.CheckRequest) (*pb.VersionCheckResponse, error) {
	return &pb.VersionCheckResponse{GrpcVersion: protocolVersion, AgentVersion: s.Config.Version}, nil
}
