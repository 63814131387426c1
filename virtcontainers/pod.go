// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/turns"
)

var errShutdown = fmt.Errorf("the pod is shut down: %w", errdefs.ErrUnavailable)

// Pod is a VM and the containers in it. Its methods may be called from several goroutines.
type Pod struct {
	opts Options
	log  *slog.Logger
	m    *boot.Machine // set by use
	done chan struct{} // closed when the VM is gone and all exits are settled

	procs    *process.Pod
	creates  *turns.Turns
	stopping lock.Mutex // held while the pod, or a part of it, is shut down
	doom     chan error // capacity 1: why the VM has to end

	mu         sync.Mutex
	containers map[string]*Container // guarded by mu
	pids       pidsMode              // guarded by mu
	closing    bool                  // guarded by mu
	death      error                 // guarded by mu; why the VM ended, when nobody asked it to
	start      timing                // guarded by mu
}

// timing is how long the starts of the pod and of its containers took.
type timing struct {
	began  time.Time // when CreatePod was called
	took   time.Duration
	phases []Phase
}

// CreatePod makes a pod: its VM runs, the agent answers and the sandbox is set up. On error nothing is
// left, and the error names the step.
func CreatePod(ctx context.Context, opts Options) (*Pod, error) {
	if !validID(opts.ID) {
		return nil, fmt.Errorf("create pod %s: pod id %q: %w", opts.ID, opts.ID, errBadID)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pod{
		opts: opts, log: opts.Log, containers: map[string]*Container{}, done: make(chan struct{}),
		stopping: lock.New(), doom: make(chan error, 1), start: timing{began: time.Now()},
		creates: turns.New("creations of containers", createsAtOnce, startsWaiting),
	}
	b, err := opts.boot(p)
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", opts.ID, err)
	}
	if err := boot.Start(ctx, b); err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.start.took = time.Since(p.start.began)
	p.mu.Unlock()
	p.logPhases()
	p.m.Life.Spawn(p.watch)
	p.m.Life.Spawn(p.watchOOM)
	p.m.Life.Spawn(p.watchPulse)
	p.m.NICs.Follow()
	return p, nil
}

// use is the last step of the boot: the pod gets its machine, and serves its metrics.
func (p *Pod) use(m *boot.Machine) error {
	p.m = m
	p.procs = &process.Pod{
		Agent: m.Agent, Caller: m.Agent, Streams: m.Agent, Log: p.log, Life: m.Life.Context(), Spawn: m.Life.Spawn,
		Ended: errShutdown, Starts: turns.New("starts of processes", startsAtOnce, startsWaiting),
		StopTimeout: p.opts.Config.Runtime.StopTimeout, Condemn: p.condemn,
	}
	return p.serveMetrics()
}

// Launch returns the expected launch measurement, or nil where no hardware measures the launch.
func (p *Pod) Launch() *launch.Expected { return p.m.Expected }

// ending reports whether the pod is about to end.
func (p *Pod) ending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// The guest holds 64 streams for processes that are being made, three for each at most.
const (
	createsAtOnce = 5
	startsAtOnce  = 16
	startsWaiting = 4096
)

// PID is the VMM's process, the same from before the hooks until the end.
func (p *Pod) PID() int { return p.m.Place.PID() }

// Phases returns the duration of each step of the pod's start, then of each step of its containers' starts. The steps
// of one start do not overlap: their sum is the whole duration.
func (p *Pod) Phases() []Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.start.phases)
}

// maxPhases bounds the list of phases in a pod that creates containers without end.
const maxPhases = 128

// recordPodStep notes the duration of a step of the pod's start.
func (p *Pod) recordPodStep(name string, start time.Time) { p.recordStep("", name, start) }

// recordStep notes the duration of a step of a container's start.
func (p *Pod) recordStep(container, name string, start time.Time) {
	d := time.Since(start)
	p.log.Debug("step done", "pod", p.opts.ID, "container", container, "step", name, "took", d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.start.phases) < maxPhases {
		p.start.phases = append(p.start.phases, Phase{container, name, d})
	}
}

// Done is closed when the VM has ended and every process's exit is settled.
func (p *Pod) Done() <-chan struct{} { return p.done }

// Err says why the VM ended, when it did so by itself.
func (p *Pod) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.death
}

// logPhases logs how long each step of the start took.
func (p *Pod) logPhases() {
	var attrs []any
	for _, ph := range p.Phases() {
		attrs = append(attrs, slog.Duration(ph.Name, ph.Duration.Round(time.Microsecond)))
	}
	p.log.Info("pod is up", slog.String("pod", p.opts.ID), slog.Group("took", attrs...))
}

// watch waits for the VM's end, or its agent's, and settles the processes' exits.
func (p *Pod) watch(ctx context.Context) {
	defer close(p.done)
	var err error
	select {
	case <-p.m.VM.Done():
	case <-p.m.Agent.Gone():
		err = p.endWithoutAgent(ctx)
	case <-p.m.Files.Gone():
		err = p.endWithoutFiles(ctx)
	case why := <-p.doom:
		err = p.endCondemned(ctx, why)
	}
	p.mu.Lock()
	if err == nil {
		err = p.m.VM.Err()
	}
	if p.closing {
		err = errShutdown
	} else {
		p.death = err
	}
	p.mu.Unlock()
	if err == nil {
		err = fmt.Errorf("vm %s ended", p.m.VM.ID())
	}
	p.settleAll(err)
}

// endWithin gives a VM a moment to end, then ends it, for the reason that is logged: nothing in it can
// be controlled, or used, any more. It says whether it was ended so.
func (p *Pod) endWithin(ctx context.Context, patience time.Duration, why string) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-p.m.VM.Done():
		return false
	case <-t.C:
	case <-ctx.Done(): // Shutdown is running and stops the VM
		<-p.m.VM.Done()
		return false
	}
	p.log.Warn(why, "vm", p.m.VM.ID())
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undo.StepTimeout)
	defer cancel()
	if err := p.m.VM.Stop(sctx); err != nil {
		p.log.Error("stop a VM", "vm", p.m.VM.ID(), "error", err)
		if err := p.m.Place.Abort(context.WithoutCancel(ctx)); err != nil {
			p.log.Error("kill a VM", "vm", p.m.VM.ID(), "error", err)
		}
	}
	<-p.m.VM.Done()
	return true
}

func (p *Pod) settleAll(reason error) {
	for _, pr := range p.processes() {
		pr.Settle(process.KilledWith(reason), true)
	}
}

// processes are those of all containers.
func (p *Pod) processes() []*process.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*process.Process
	for _, c := range p.containers {
		all = append(all, c.processes()...)
	}
	return all
}

// Container returns the handle of a container.
func (p *Pod) Container(id string) (*Container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// reserve takes the id, or refuses.
func (p *Pod) reserve(c *Container) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return fmt.Errorf("container %s: %w", c.id, errShutdown)
	}
	if _, ok := p.containers[c.id]; ok {
		return fmt.Errorf("container %s: %w", c.id, errdefs.ErrAlreadyExists)
	}
	p.containers[c.id] = c
	return nil
}

func (p *Pod) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.containers, id)
	p.start.phases = slices.DeleteFunc(p.start.phases, func(ph Phase) bool { return ph.Container == id })
}

// alone is the id of the container of a pod of one, else empty.
func (p *Pod) alone() string {
	if p.opts.First == nil {
		return ""
	}
	return p.opts.First.ID
}
