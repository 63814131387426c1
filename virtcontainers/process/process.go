// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package process is a process in the guest: a container's first process or an exec.
//
// A Process is a handle. It moves along one table of states (lifecycle.go) from its creation to its deletion; an
// operation claims a transitional state, works without a lock, and settles. One goroutine of the pod asks the guest
// for the exit. The exit is published once, after the output has been read or a grace is over, and after the
// termination message was fetched. A process whose VM dies ends with the VM's reason.
//
// The guest is not believed about SIGKILL: a process that does not end in time condemns its VM.
//
// Owner does what a start or removal of the process means to its container. The package knows neither containers nor
// VMs.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/virtcontainers/answers"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/stream"
	"github.com/coco-shim/coco/virtcontainers/turns"
)

// Sigkill is the signal that no process may ignore.
const Sigkill = 9

// Agent has the calls for processes; *guest.Link implements it.
type Agent interface {
	ExecProcess(context.Context, *agent.ExecProcessRequest) (*emptypb.Empty, error)
	SignalProcess(context.Context, *agent.SignalProcessRequest) (*emptypb.Empty, error)
	WaitProcess(context.Context, *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error)
	TtyWinResize(context.Context, *agent.TtyWinResizeRequest) (*emptypb.Empty, error)
	GetDiagnosticData(context.Context, *agent.GetDiagnosticDataRequest) (*agent.GetDiagnosticDataResponse, error)
}

// Caller bounds calls in time and explains their errors; *guest.Link implements it.
type Caller interface {
	// Call makes a call, and gives its error name and class. Within and Fault are its halves.
	Call(ctx context.Context, what string, fn func(context.Context) error) error
	Within(ctx context.Context) (context.Context, context.CancelFunc)
	Fault(ctx context.Context, err error) error
}

// Pod has what the processes of one pod share.
type Pod struct {
	Agent   Agent
	Caller  Caller
	Streams stream.Guest
	Log     *slog.Logger
	// Life is the pod's: it ends with it. Spawn starts a goroutine of the pod, and returns false when the pod has ended,
	// for the reason Ended.
	Life  context.Context
	Spawn func(func(context.Context)) bool
	Ended error
	// Starts bounds how many execs are started at once.
	Starts *turns.Turns
	// StopTimeout is how long a process may live on after SIGKILL; then Condemn ends the VM.
	StopTimeout time.Duration
	Condemn     func(why error)
}

// Owner is what a process means to its container.
type Owner struct {
	// MayStart refuses the start of a process, with the reason; nil: it is never refused.
	MayStart func() error
	// Start has the guest start a container. It is nil for an exec.
	Start func(ctx context.Context) error
	// Started runs after a start; nil: nothing does.
	Started func(ctx context.Context) error
	// Ended runs when the guest has reported the exit, before it is published; nil: nothing does.
	Ended func(ctx context.Context)
	// Remove releases what the container has of the process.
	Remove func(ctx context.Context) error
}

// Process is a container's first process, or an exec. Its methods may be called from several goroutines.
type Process struct {
	pod      *Pod
	owner    Owner
	id       stream.Process
	want     stream.Wanted
	request  *agent.ExecProcessRequest // of an exec; set before it is shared
	message  *os.File                  // host file for the termination message, or nil; set before it is shared
	done     chan struct{}             // closed when exit is set
	reported flag                      // the guest has reported the exit, or exit is set
	killed   flag                      // it was sent SIGKILL

	mu      sync.Mutex
	state   State       // guarded by mu
	known   bool        // guarded by mu; the guest reported the exit code; output drains
	exit    ExitStatus  // guarded by mu; final after done
	settled bool        // guarded by mu; done is closed
	streams *stream.Set // guarded by mu
}

// flag is a channel that is closed once.
type flag struct {
	once sync.Once
	c    chan struct{}
}

func (f *flag) set() { f.once.Do(func() { close(f.c) }) }

// New makes the first process of a container that is being created.
func New(p *Pod, container string, want stream.Wanted, o Owner) *Process {
	return &Process{
		pod: p, owner: o, id: stream.Process{Container: container}, want: want, done: make(chan struct{}),
		reported: flag{c: make(chan struct{})}, killed: flag{c: make(chan struct{})},
	}
}

// NewExec makes an exec. The guest gets the request in Start.
func NewExec(p *Pod, req *agent.ExecProcessRequest, want stream.Wanted, o Owner) *Process {
	pr := New(p, req.GetContainerId(), want, o)
	pr.id.Exec, pr.request, pr.state = req.GetExecId(), req, Created
	return pr
}

// String names the process as errors do.
func (p *Process) String() string { return p.id.String() }

// to moves the process along its lifecycle, or says why not.
func (p *Process) to(e event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.toLocked(e)
}

func (p *Process) toLocked(e event) error {
	next, err := transitions.Next(p.state, e)
	if err != nil {
		return fmt.Errorf("%s is %s, cannot %s: %w", p, p.state, e, errdefs.ErrFailedPrecondition)
	}
	p.state = next
	return nil
}

// Current is the state of the process, which may be a transitional one.
func (p *Process) Current() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// State tells where the process stands, and its exit status once it is Stopped.
func (p *Process) State() (State, ExitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.public(), p.exit
}

// Open connects the streams of a container's first process, before the guest creates it.
func (p *Process) Open(ctx context.Context) (*stream.Set, stream.Ports, error) {
	s, n, err := stream.Open(ctx, p.pod.Life, p.pod.Streams, p.want, p.id)
	if err != nil {
		return nil, n, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams = s
	return s, n, nil
}

// Created says that the guest has created the container with the streams: from here on its exit is waited for.
func (p *Process) Created(s *stream.Set) (stream.Streams, error) {
	if err := p.to(evCreated); err != nil {
		return stream.Streams{}, err
	}
	return p.live(s), nil
}

// live serves the streams and waits for the exit of a process that exists in the guest.
func (p *Process) live(s *stream.Set) stream.Streams {
	s.Serve(p.pod.Spawn, p.pod.Log)
	p.await()
	return s.Streams
}

// CloseStreams ends the streams. It is idempotent.
func (p *Process) CloseStreams() error {
	p.mu.Lock()
	s := p.streams
	p.streams = nil
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Close()
}

// Start starts the process. Those of an exec are connected now, and returned.
func (p *Process) Start(ctx context.Context) (s stream.Streams, err error) {
	if p.owner.MayStart != nil {
		if err := p.owner.MayStart(); err != nil {
			return s, fmt.Errorf("start %s: %w", p, err)
		}
	}
	if err := p.to(evStart); err != nil {
		return s, err
	}
	if p.request != nil {
		s, err = p.startExec(ctx)
	} else {
		err = p.owner.Start(ctx)
	}
	if err != nil {
		p.startFailed()
		return stream.Streams{}, errors.Join(err, p.closeFailed())
	}
	if err := p.to(evStarted); err != nil {
		return stream.Streams{}, err
	}
	if p.owner.Started != nil {
		if err := p.owner.Started(ctx); err != nil {
			return stream.Streams{}, errors.Join(err, p.Kill(ctx, Sigkill, true))
		}
	}
	return s, nil
}

// closeFailed ends the streams of an exec that the guest did not start. Those of a container end with it.
func (p *Process) closeFailed() error {
	if p.request == nil {
		return nil
	}
	return p.CloseStreams()
}

func (p *Process) startExec(ctx context.Context) (stream.Streams, error) {
	g := p.pod.Caller
	ctx, cancel := g.Within(ctx)
	defer cancel()
	done, err := p.pod.Starts.Take(ctx)
	if err != nil {
		return stream.Streams{}, fmt.Errorf("start %s: %w", p, err)
	}
	defer done()
	s, n, err := p.Open(ctx)
	if err != nil {
		return stream.Streams{}, fmt.Errorf("start %s: %w", p, g.Fault(ctx, err))
	}
	p.request.StdinPort, p.request.StdoutPort, p.request.StderrPort = n.Stdin, n.Stdout, n.Stderr
	if _, err := p.pod.Agent.ExecProcess(ctx, p.request); err != nil {
		return stream.Streams{}, guest.Named("start "+p.String(), g.Fault(ctx, err))
	}
	return p.live(s), nil
}

// Pause freezes a container's processes by do.
func (p *Process) Pause(do func() error) error { return p.change(do, evPause, evPaused, evPauseFailed) }

// Resume thaws a container's processes by do.
func (p *Process) Resume(do func() error) error {
	return p.change(do, evResume, evResumed, evResumeFailed)
}

func (p *Process) change(do func() error, claim, ok, failed event) error {
	if err := p.to(claim); err != nil {
		return err
	}
	if err := do(); err != nil {
		return errors.Join(err, p.to(failed))
	}
	return p.to(ok)
}

// Kill sends a signal. all asks for every process of the container, which Kata's protocol knows for SIGKILL only: an
// agent that does not know ours sends others to the first process. An exec is one process, as under other runtimes.
func (p *Process) Kill(ctx context.Context, sig uint32, all bool) error {
	switch st := p.Current(); st {
	case Stopped, deleting, deleted:
		return fmt.Errorf("%s has already ended: %w", p, errdefs.ErrNotFound)
	case creating:
		return fmt.Errorf("%s is %s: %w", p, st, errdefs.ErrFailedPrecondition)
	case Created, starting:
		if p.request != nil {
			return fmt.Errorf("%s is not started: %w", p, errdefs.ErrFailedPrecondition)
		}
	}
	if sig == Sigkill {
		p.mustEnd() // independent of the guest's answer
	}
	all = all && p.request == nil
	if all && sig != Sigkill && !p.pod.Streams.Features().SignalsAll {
		p.pod.Log.Warn("the guest's agent signals the container's first process only", "container", p.id.Container,
			"signal", sig)
	}
	req := &agent.SignalProcessRequest{ContainerId: p.id.Container, ExecId: p.id.Exec, Signal: sig, All: all}
	err := p.pod.Caller.Call(ctx, "signal "+p.String(), func(ctx context.Context) error {
		_, err := p.pod.Agent.SignalProcess(ctx, req)
		return err
	})
	var dead *hypervisor.DeadError
	switch {
	// the process ended, then its VM, and the answer was lost with that
	case errdefs.IsUnavailable(err) && p.toldByGuest():
		return nil
	case errors.As(err, &dead): // NotFound lets a removal go on
		return fmt.Errorf("%s has ended with its VM: %v: %w", p, dead, errdefs.ErrNotFound) //nolint:errorlint // NotFound only
	case errors.Is(err, answers.ErrProtocol): // which ends the VM
		return fmt.Errorf("%s ends with its VM: %v: %w", p, err, errdefs.ErrNotFound) //nolint:errorlint // NotFound only
	}
	return err
}

// Resize sets the size of the process's terminal. Before an exec is started the size is kept for it.
func (p *Process) Resize(ctx context.Context, w, h uint32) error {
	if !p.want.Terminal {
		return fmt.Errorf("%s has no terminal: %w", p, errdefs.ErrFailedPrecondition)
	}
	w, h = w&math.MaxUint16, h&math.MaxUint16 // struct winsize has 16 bits; runc's shim cuts as well
	p.mu.Lock()
	waiting := p.request != nil && p.state == Created
	if waiting {
		p.request.Process.ConsoleSize = &agent.Box{Width: w, Height: h}
	}
	p.mu.Unlock()
	if waiting {
		return nil
	}
	return p.pod.Caller.Call(ctx, "resize the terminal of "+p.String(), func(ctx context.Context) error {
		_, err := p.pod.Agent.TtyWinResize(ctx, &agent.TtyWinResizeRequest{
			ContainerId: p.id.Container, ExecId: p.id.Exec,
			Row: h, Column: w,
		})
		return err
	})
}

// Delete removes a process that has ended or was never started. A container's first process takes the container with
// it.
func (p *Process) Delete(ctx context.Context) (ExitStatus, error) {
	if p.Current() == deleted {
		return ExitStatus{}, fmt.Errorf("%s: %w", p, errdefs.ErrNotFound)
	}
	if err := p.to(evDelete); err != nil {
		return ExitStatus{}, err
	}
	var lost error
	never := ExitStatus{Code: killedCode} // of a container that was never started
	if p.request != nil {
		lost, never = p.CloseStreams(), ExitStatus{}
	}
	if err := p.owner.Remove(ctx); err != nil {
		return ExitStatus{}, errors.Join(fmt.Errorf("delete %s: %w", p, err), lost, p.to(evDeleteFailed))
	}
	p.Settle(never, false)
	_, exit := p.State()
	return exit, errors.Join(lost, p.to(evDeleted))
}
