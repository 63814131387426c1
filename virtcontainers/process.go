// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/answers"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

const (
	killedCode  = 128 + 9 // exit code of a process that died with the VM
	unknownCode = 255     // the process never ran, or the agent lost its status
	sigkill     = 9
)

// process is a container's first process (exec is empty) or an exec.
type process struct {
	container, exec    string
	want               stream.Wanted
	request            *agent.ExecProcessRequest // of an exec; set before it is shared
	terminationMessage *os.File                  // host file for the termination message, or nil; set before it is shared
	done               chan struct{}             // closed when exit is set
	reported           chan struct{}             // closed when the guest has reported the exit, or exit is set
	reportOnce         sync.Once                 // closes reported
	killed             chan struct{}             // closed when it was sent SIGKILL
	doomed             sync.Once                 // closes killed

	mu       sync.Mutex
	state    State       // guarded by mu
	known    bool        // guarded by mu; the guest reported the exit code; output drains
	exit     ExitStatus  // guarded by mu; final after done
	settled  bool        // guarded by mu; done is closed
	pipes    *stream.Set // guarded by mu
	terminal bool        // set before it is shared
}

func newProcess(container, exec string, terminal bool, want stream.Wanted) *process {
	return &process{
		container: container, exec: exec, terminal: terminal, want: want,
		done: make(chan struct{}), reported: make(chan struct{}), killed: make(chan struct{}),
	}
}

func (pr *process) id() stream.Process { return stream.Process{Container: pr.container, Exec: pr.exec} }

func (pr *process) name() string { return pr.id().String() }

// to moves the process along its lifecycle, or says why not.
func (pr *process) to(e event) error {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.toLocked(e)
}

func (pr *process) toLocked(e event) error {
	next, err := transitions.Next(pr.state, e)
	if err != nil {
		return fmt.Errorf("%s is %s, cannot %s: %w", pr.name(), pr.state, e, errdefs.ErrFailedPrecondition)
	}
	pr.state = next
	return nil
}

func (pr *process) current() State {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.state
}

func (pr *process) setPipes(s *stream.Set) {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	pr.pipes = s
}

// closePipes ends the streams; idempotent.
func (pr *process) closePipes() error {
	pr.mu.Lock()
	s := pr.pipes
	pr.pipes = nil
	pr.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Close()
}

// settle publishes the exit, once. The first to know wins; the VM's death does not overrule a code
// that the guest has reported and that only waits for the output.
func (pr *process) settle(exit ExitStatus, fromVM bool) {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if pr.settled || fromVM && pr.known {
		return
	}
	if err := pr.toLocked(evExited); err != nil {
		panic(err) // the table takes an exit in every state
	}
	exit.At = time.Now()
	pr.exit, pr.settled = exit, true
	pr.exitReported()
	close(pr.done)
}

// exitReported closes reported. Later calls do nothing.
func (pr *process) exitReported() { pr.reportOnce.Do(func() { close(pr.reported) }) }

// startFailed ends a process that never ran.
func (pr *process) startFailed() {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if err := pr.toLocked(evStartFailed); err != nil || pr.settled {
		return
	}
	pr.exit, pr.settled = ExitStatus{Code: unknownCode, At: time.Now()}, true
	pr.exitReported()
	close(pr.done)
}

// status is the exit status, valid after done.
func (pr *process) status() ExitStatus {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.exit
}

// await asks the guest for the exit, from a goroutine of the pod.
func (p *Pod) await(pr *process) {
	if !p.life.spawn(func(ctx context.Context) { p.awaitExit(ctx, pr) }) {
		pr.settle(ExitStatus{Code: killedCode, Reason: errShutdown.Error()}, true)
	}
}

func (p *Pod) awaitExit(ctx context.Context, pr *process) {
	pr.mu.Lock()
	s := pr.pipes
	pr.mu.Unlock()
	if s != nil {
		s.AwaitRead(ctx, pr.killed)
	}
	res, err := p.agent.WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: pr.container, ExecId: pr.exec})
	switch {
	case err == nil:
		pr.drain(ctx)
		p.fetchTerminationMessage(ctx, pr)
		pr.settle(exitTold(res.GetStatus()), false)
	case ctx.Err() != nil:
		pr.settle(ExitStatus{Code: killedCode, Reason: context.Cause(ctx).Error()}, true)
	case guest.Lost(err):
		// The watcher sees the VM's end, and then settles all with its reason.
		p.log.Debug("wait for exit: connection broke", "process", pr.name(), "error", err)
	default:
		reason := "the agent lost the exit status: " + guest.Classify(err).Error()
		pr.settle(ExitStatus{Code: unknownCode, Reason: reason}, false)
	}
}

// exitTold is the exit that the guest tells, if it is one.
func exitTold(code int32) ExitStatus {
	if code < 0 || code > 255 {
		return ExitStatus{Code: unknownCode, Reason: fmt.Sprintf("the guest tells the exit status %d, which none is", code)}
	}
	return ExitStatus{Code: uint32(code)}
}

// toldByGuest says whether the exit status is the guest's, and not that of a VM which died.
func (pr *process) toldByGuest() bool {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.known
}

// drain waits for the end of the process's output, at most stream.DrainGrace.
func (pr *process) drain(ctx context.Context) {
	pr.exitReported()
	pr.mu.Lock()
	pr.known = true
	s := pr.pipes
	pr.mu.Unlock()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stream.DrainGrace)
	defer cancel()
	s.Drained(ctx.Done())
}

// Wait returns when the process has ended. Any number of callers may wait.
func (p *Pod) Wait(ctx context.Context, containerID, execID string) (ExitStatus, error) {
	pr, err := p.process(containerID, execID)
	if err != nil {
		return ExitStatus{}, err
	}
	select {
	case <-pr.done:
		return pr.status(), nil
	case <-ctx.Done():
		return ExitStatus{}, fmt.Errorf("wait for %s: %w", pr.name(), context.Cause(ctx))
	}
}

// State tells where a process stands, and its exit status once it is Stopped.
func (p *Pod) State(containerID, execID string) (State, ExitStatus, error) {
	pr, err := p.process(containerID, execID)
	if err != nil {
		return Stopped, ExitStatus{}, err
	}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.state.public(), pr.exit, nil
}

// Kill sends a signal. all asks for every process of the container, which Kata's protocol knows for SIGKILL only: an
// agent that does not know ours sends others to the first process. An exec is one process, as under other runtimes.
func (p *Pod) Kill(ctx context.Context, containerID, execID string, sig uint32, all bool) error {
	pr, err := p.process(containerID, execID)
	if err != nil {
		return err
	}
	switch st := pr.current(); st {
	case Stopped, deleting, deleted:
		return fmt.Errorf("%s has already ended: %w", pr.name(), errdefs.ErrNotFound)
	case creating:
		return fmt.Errorf("%s is %s: %w", pr.name(), st, errdefs.ErrFailedPrecondition)
	case Created, starting:
		if execID != "" {
			return fmt.Errorf("%s is not started: %w", pr.name(), errdefs.ErrFailedPrecondition)
		}
	}
	if sig == sigkill {
		p.mustEnd(pr) // independent of the guest's answer
	}
	all = all && execID == ""
	if all && sig != sigkill && !p.agent.Features().SignalsAll {
		p.log.Warn("the guest's agent signals the container's first process only", "container", containerID, "signal", sig)
	}
	req := &agent.SignalProcessRequest{ContainerId: containerID, ExecId: execID, Signal: sig, All: all}
	err = p.agent.Call(ctx, "signal "+pr.name(), func(ctx context.Context) error {
		_, err := p.agent.SignalProcess(ctx, req)
		return err
	})
	var dead *hypervisor.DeadError
	switch {
	// the process ended, then its VM, and the answer was lost with that
	case errdefs.IsUnavailable(err) && pr.toldByGuest():
		return nil
	case errors.As(err, &dead): // NotFound lets a removal go on
		return fmt.Errorf("%s has ended with its VM: %v: %w", pr.name(), dead, errdefs.ErrNotFound) //nolint:errorlint // NotFound only
	case errors.Is(err, answers.ErrProtocol): // which ends the VM
		return fmt.Errorf("%s ends with its VM: %v: %w", pr.name(), err, errdefs.ErrNotFound) //nolint:errorlint // NotFound only
	}
	return err
}

// Resize sets the size of the process's terminal. Before an exec is started the size is kept for it.
func (p *Pod) Resize(ctx context.Context, containerID, execID string, w, h uint32) error {
	pr, err := p.process(containerID, execID)
	if err != nil {
		return err
	}
	if !pr.terminal {
		return fmt.Errorf("%s has no terminal: %w", pr.name(), errdefs.ErrFailedPrecondition)
	}
	w, h = w&math.MaxUint16, h&math.MaxUint16 // struct winsize has 16 bits; runc's shim cuts as well
	pr.mu.Lock()
	waiting := execID != "" && pr.state == Created
	if waiting {
		pr.request.Process.ConsoleSize = &agent.Box{Width: w, Height: h}
	}
	pr.mu.Unlock()
	if waiting {
		return nil
	}
	return p.agent.Call(ctx, "resize the terminal of "+pr.name(), func(ctx context.Context) error {
		_, err := p.agent.TtyWinResize(ctx, &agent.TtyWinResizeRequest{
			ContainerId: containerID, ExecId: execID,
			Row: h, Column: w,
		})
		return err
	})
}

// Exec records a further process. The guest gets it in Start.
func (p *Pod) Exec(_ context.Context, req ExecRequest) error {
	c, err := p.container(req.ContainerID)
	if err != nil {
		return err
	}
	if !validID(req.ExecID) {
		return fmt.Errorf("exec id %q: %w", req.ExecID, errBadID)
	}
	switch st := c.init.current(); st {
	case Created, starting, Running, pausing, Paused, resuming:
	default:
		return fmt.Errorf("exec %s: container %s is %s: %w", req.ExecID, c.id, st, errdefs.ErrFailedPrecondition)
	}
	pr := newProcess(c.id, req.ExecID, req.Terminal, req.wanted())
	pr.request, err = request.Exec(request.ExecInput{
		Container: c.id, ID: req.ExecID, Process: req.Process, Terminal: req.Terminal, Rlimits: p.rlimits,
	})
	if err != nil {
		return fmt.Errorf("exec %s: %w", req.ExecID, err)
	}
	if err := pr.to(evCreated); err != nil {
		return err
	}
	return c.addExec(pr)
}

func (p *Pod) startExec(ctx context.Context, c *container, pr *process) (_ stream.Streams, err error) {
	if st := c.init.current(); st != Running {
		return stream.Streams{}, fmt.Errorf("start %s: the container is %s: %w", pr.name(), st, errdefs.ErrFailedPrecondition)
	}
	if err := pr.to(evStart); err != nil {
		return stream.Streams{}, err
	}
	ctx, cancel := p.agent.Within(ctx)
	defer cancel()
	done, err := p.starts.Take(ctx)
	if err != nil {
		pr.startFailed()
		return stream.Streams{}, fmt.Errorf("start %s: %w", pr.name(), err)
	}
	defer done()
	s, n, err := stream.Open(ctx, p.life.ctx, p.agent, pr.want, pr.id())
	if err != nil {
		pr.startFailed()
		return stream.Streams{}, fmt.Errorf("start %s: %w", pr.name(), p.agent.Fault(ctx, err))
	}
	pr.setPipes(s)
	pr.request.StdinPort, pr.request.StdoutPort, pr.request.StderrPort = n.Stdin, n.Stdout, n.Stderr
	if _, err := p.agent.ExecProcess(ctx, pr.request); err != nil {
		pr.startFailed()
		err = guest.Named("start "+pr.name(), p.agent.Fault(ctx, err))
		return stream.Streams{}, errors.Join(err, pr.closePipes())
	}
	s.Serve(p.life.spawn, p.log)
	p.await(pr)
	if err := pr.to(evStarted); err != nil {
		return stream.Streams{}, err
	}
	return s.Streams, nil
}
