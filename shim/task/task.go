// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package task is containerd's task service over the pod model: it decodes requests, calls the pod,
// relays its streams and publishes events.
//
// A Service serves one pod. The first Create makes it: a single-container pod for `ctr run` and Docker, whose
// VM ends with its container, or the pod of a CRI sandbox, whose containers follow. The sandbox's own
// container is the VM itself: it has no process in the guest, and it ends when it is killed or the VM
// dies.
//
// Each process has one goroutine, from Create (a container's init) or Start (an exec) to its exit. It
// waits for the process, then for its output, then for its start event, and for an init until the
// container's execs have ended; then it publishes the exit, once. So the start event comes before the exit,
// output is delivered before the exit, and an init's exit comes last.
//
// The exit of a single-container pod ends its VM, once its output was read: later requests need no guest, so
// a container that is never removed holds none of the guest's memory. The pod's resources on the host stay until
// Delete.
//
// The sandbox API makes the same pod by other calls (sandbox.go); no container stands for
// the sandbox then.
//
// Errors get their gRPC codes in package rpc, and nowhere else.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/virtcontainers"
)

// PodRequest asks for a pod.
type PodRequest struct {
	ID, Bundle string
	Spec       *specs.Spec
	Options    Options
	First      *virtcontainers.ContainerRequest // of a pod of one
	OnOOM      func(containerID string)
}

// Events is where events go; package events has the real one.
type Events interface {
	Send(event proto.Message)
	Flush(ctx context.Context) error
	Close(ctx context.Context) error
}

// Config has the dependencies of a service.
type Config struct {
	Namespace string
	MakePod   func(ctx context.Context, r PodRequest) (Pod, error)
	Events    Events
	Log       *slog.Logger
}

const (
	// flushTimeout bounds how long Shutdown waits for containerd to take the last events. It waits
	// 3 s for the answer itself.
	flushTimeout = 2 * time.Second
	// execsTimeout bounds how long an init's exit waits for those of its execs.
	execsTimeout = 10 * time.Second
	// startTimeout and stopTimeout bound operations that go on although their caller has gone:
	// containerd may restart meanwhile, and they must not be left half done.
	startTimeout = 2 * time.Minute
	stopTimeout  = time.Minute
)

// Service is the task service of one pod.
type Service struct {
	cfg    Config
	log    *slog.Logger
	life   context.Context // ends with Stop; only for goroutines that the service owns
	cancel context.CancelFunc
	group  sync.WaitGroup // of those goroutines
	done   chan struct{}
	once   sync.Once

	mu         sync.Mutex
	pod        Pod                   // guarded by mu; nil until it is made
	podID      string                // guarded by mu
	podState   podState              // guarded by mu
	stopping   bool                  // guarded by mu
	held       bool                  // guarded by mu; a sandbox of the sandbox API, not yet released
	amend      func(*specs.Spec)     // guarded by mu; completes the specs of that sandbox's containers
	containers map[string]*container // guarded by mu; includes those that are being created
}

// New makes a service without a pod.
func New(cfg Config) *Service {
	life, cancel := context.WithCancel(context.Background())
	return &Service{
		cfg: cfg, log: cfg.Log, life: life, cancel: cancel,
		done: make(chan struct{}), containers: map[string]*container{},
	}
}

// Done is closed when the last container is gone and containerd wants the shim gone too.
func (s *Service) Done() <-chan struct{} { return s.done }

// Stop ends the pod, if there is one, publishes all exits and delivers all events.
func (s *Service) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	pod := s.pod
	containers := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		containers = append(containers, c)
	}
	s.mu.Unlock()

	var errs []error
	if pod != nil {
		errs = append(errs, pod.Shutdown(ctx)) // every Wait returns
	}
	for _, c := range containers {
		errs = append(errs, c.settle(ctx))
	}
	s.cancel()
	s.group.Wait()
	for _, c := range containers {
		errs = append(errs, c.closeRelays())
	}
	errs = append(errs, s.cfg.Events.Close(ctx))
	return errors.Join(errs...)
}

// lookup finds a container that was created.
func (s *Service) lookup(id string) (*container, Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.creating {
		return nil, nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, s.pod, nil
}

// process finds a process of a container that was created.
func (s *Service) process(id, exec string) (*container, *process, Pod, error) {
	c, pod, err := s.lookup(id)
	if err != nil {
		return nil, nil, nil, err
	}
	p, err := c.process(exec)
	return c, p, pod, err
}

// detached is a context for an operation that must be finished although its caller goes away.
func (s *Service) detached(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), most)
}

// watch runs f as a goroutine that Stop waits for.
func (s *Service) watch(f func(ctx context.Context)) {
	s.group.Go(func() { f(s.life) })
}
