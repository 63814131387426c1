// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sandbox is containerd's sandbox service (sandboxer = "shim", containerd 2.0 and later) over
// the pod model. The pod is the one that the task service serves: CreateSandbox checks and keeps the
// description, StartSandbox makes the pod, the containers come through the task API.
//
// Without a pause container the sandboxer has to make the things that containerd would make for
// one: the spec (config.go) and the files of /etc (files.go).
//
// A sandbox ends once: by StopSandbox, with status 0, or with its VM, with 137 and a reason. The
// pod's resources on the host are given back then, before the daemon removes the pod's network.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/task"
)

const killedCode = 128 + uint32(unix.SIGKILL)

// Tasks has the methods of the task service, which owns the pod, that this service calls.
type Tasks interface {
	MakeSandbox(ctx context.Context, r task.PodRequest, amend func(*specs.Spec)) (task.Pod, error)
	EndSandbox(ctx context.Context) error
	ReleaseSandbox(ctx context.Context)
}

// Service is the sandbox service of one shim, which has at most one sandbox.
type Service struct {
	tasks Tasks
	log   *slog.Logger
	group sync.WaitGroup // of the goroutine that waits for the VM's end

	mu  sync.Mutex
	box *box // guarded by mu; nil until CreateSandbox
}

// box is the sandbox.
type box struct {
	id    string
	pod   task.PodRequest
	amend func(*specs.Spec)
	gone  chan struct{} // closed when it has ended

	// The rest is guarded by Service.mu.
	state     state
	running   task.Pod           // nil unless ready or stopping
	pid       uint32             // of the VMM; stays when it has ended
	cancel    context.CancelFunc // of a start under way
	settled   chan struct{}      // closed when no start is under way
	createdAt time.Time
	exitedAt  time.Time
	status    uint32
	reason    string // of an unexpected end
}

// New makes a service without a sandbox.
func New(tasks Tasks, log *slog.Logger) *Service { return &Service{tasks: tasks, log: log} }

// Wait waits for the service's goroutine, which ends with the pod.
func (s *Service) Wait() { s.group.Wait() }

// request asks for a sandbox.
type request struct {
	id, bundle, netns string
	optionsType       string
	options           []byte
	annotations       map[string]string
}

// create checks the request and keeps it. Nothing runs yet.
func (s *Service) create(r request) error {
	if err := bundle.CheckName("sandbox id", r.id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.box != nil {
		return fmt.Errorf("create sandbox %s: this shim has sandbox %s: %w", r.id, s.box.id, errdefs.ErrAlreadyExists)
	}
	b, err := newBox(r)
	if err != nil {
		return fmt.Errorf("create sandbox %s: %w", r.id, err)
	}
	s.box = b
	return nil
}

func newBox(r request) (*box, error) {
	c, err := decodeConfig(r.optionsType, r.options)
	if err != nil {
		return nil, err
	}
	if c.annotations == nil {
		c.annotations = map[string]string{}
	}
	maps.Copy(c.annotations, r.annotations)
	if c.network == nodeMode {
		return nil, fmt.Errorf("the pod asks for the host's network (hostNetwork: true), which a VM cannot have: %w",
			errdefs.ErrInvalidArgument)
	}
	opts, err := runtimeOptions(bundle.Dir(r.bundle))
	if err != nil {
		return nil, err
	}
	if err := writeFiles(r.bundle, c); err != nil {
		return nil, err
	}
	settled := make(chan struct{})
	close(settled)
	return &box{
		id: r.id, amend: amender(r.bundle), gone: make(chan struct{}), settled: settled,
		pod: task.PodRequest{
			ID: r.id, Bundle: r.bundle, Options: opts, Spec: c.spec(r.id, r.netns),
		},
	}, nil
}

// runtimeOptions are those that came with the shim's start.
func runtimeOptions(dir bundle.Dir) (task.Options, error) {
	data, err := dir.Options()
	if err != nil || len(data) == 0 {
		return task.Options{}, err
	}
	var a anypb.Any
	if err := proto.Unmarshal(data, &a); err != nil {
		return task.Options{}, fmt.Errorf("runtime options of the bundle: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return task.DecodeOptions(&a)
}

// find returns the sandbox if it has the id.
func (s *Service) find(id string) (*box, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.box == nil || s.box.id != id {
		return nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	return s.box, nil
}

// to moves the sandbox to its next state.
func (b *box) to(e event) error {
	next, err := transitions.Next(b.state, e)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", b.id, err)
	}
	b.state = next
	return nil
}

// start boots the VM. A start that its caller gives up is undone.
func (s *Service) start(ctx context.Context, b *box) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.beginStart(b, cancel); err != nil {
		return err
	}
	pod, err := s.tasks.MakeSandbox(ctx, b.pod, b.amend)
	if err != nil {
		s.end(b, killedCode, err)
		return fmt.Errorf("start sandbox %s: %w", b.id, err)
	}
	if err := s.started(b, pod); err != nil {
		return errors.Join(fmt.Errorf("start sandbox %s: it was stopped meanwhile: %w", b.id, err), s.tasks.EndSandbox(ctx))
	}
	s.group.Go(func() { s.watch(b, pod) })
	return nil
}

func (s *Service) beginStart(b *box, cancel context.CancelFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := b.to(evStart); err != nil {
		return err
	}
	b.cancel, b.settled = cancel, make(chan struct{})
	return nil
}

// started notes a pod that runs, unless the sandbox was stopped meanwhile.
func (s *Service) started(b *box, pod task.Pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(b.settled)
	b.pid, b.createdAt = uint32(pod.PID()), time.Now() //nolint:gosec // a pid
	b.running = pod
	return b.to(evStarted)
}

// watch waits for the VM's end and releases its resources.
func (s *Service) watch(b *box, pod task.Pod) {
	<-pod.Done()
	s.mu.Lock()
	asked := b.state == stopping
	s.mu.Unlock()
	code, reason := uint32(0), error(nil)
	if !asked {
		code, reason = killedCode, pod.Err()
		if reason == nil {
			reason = errors.New("the shim ended it")
		}
		s.log.Error("sandbox ended with its VM", "sandbox", b.id, "reason", reason)
		if err := s.tasks.EndSandbox(context.Background()); err != nil { // bounded there
			s.log.Error("give back what the sandbox held", "sandbox", b.id, "error", err)
		}
	}
	s.end(b, code, reason)
}

// end settles the sandbox, once.
func (s *Service) end(b *box, code uint32, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.state == ended {
		return
	}
	if b.running == nil && b.cancel != nil { // a start that has failed
		close(b.settled)
		b.cancel = nil
	}
	b.state, b.exitedAt, b.status = ended, time.Now(), code
	if reason != nil {
		b.reason = reason.Error()
	}
	close(b.gone)
}

// stop ends the VM, with everything in it. It is idempotent.
func (s *Service) stop(ctx context.Context, b *box) error {
	s.mu.Lock()
	err := b.to(evStop)
	cancel, settled := b.cancel, b.settled
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if cancel != nil { // of a start that is over, it does nothing
		cancel()
	}
	select {
	case <-settled:
	case <-ctx.Done():
		return fmt.Errorf("its start does not end: %w", ctx.Err())
	}
	if err := s.tasks.EndSandbox(ctx); err != nil {
		return err
	}
	s.end(b, 0, nil)
	return nil
}
