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
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/disk"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/nic"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/state"
	"github.com/coco-shim/coco/virtcontainers/turns"
)

var errShutdown = fmt.Errorf("the pod is shut down: %w", errdefs.ErrUnavailable)

// Pod is a VM and the containers in it. Its methods may be called from several goroutines.
type Pod struct {
	opts    Options
	log     *slog.Logger
	vm      hypervisor.VM
	place   hypervisor.Pending // where the VM runs
	files   *liveFiles         // nil when no files of the host are live
	agent   *guest.Link
	life    *life
	undo    undo.Stack // releases the pod's resources on the host
	journal *state.Journal
	disks   *disk.Set
	volumes *share.Set
	nics    *nic.Set
	first   *layers.Search // layers of the pod of one; nil once taken, guarded by mu

	sharedShm bool
	rlimits   []specs.POSIXRlimit // of processes for which nobody names them
	pids      pidsMode            // guarded by mu
	expected  *launch.Expected    // nil where no hardware measures the launch
	done      chan struct{}       // closed when the VM is gone and all exits are settled
	stopping  lock.Mutex          // held while the pod, or a part of it, is shut down
	doom      chan error          // capacity 1: why the VM has to end
	creates   *turns.Turns
	procs     *process.Pod

	mu         sync.Mutex
	containers map[string]*Container // guarded by mu
	closing    bool                  // guarded by mu
	phases     []Phase               // guarded by mu
	began      time.Time             // when CreatePod was called
	shape      launch.Shape          // set before the metrics are served
	startTook  time.Duration         // guarded by mu; all of CreatePod
	death      error                 // guarded by mu; why the VM ended, when nobody asked it to
}

// The guest holds 64 streams for processes that are being made, three for each at most.
const (
	createsAtOnce = 5
	startsAtOnce  = 16
	startsWaiting = 4096
)

// PID is the VMM's process, the same from before the hooks until the end.
func (p *Pod) PID() int { return p.place.PID() }

// Phases returns the duration of each step of the pod's start, then of each step of its containers' starts. The steps
// of one start do not overlap: their sum is the whole duration.
func (p *Pod) Phases() []Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.phases)
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
	if len(p.phases) < maxPhases {
		p.phases = append(p.phases, Phase{container, name, d})
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

// takeFirst returns the search for the layers that was begun before the boot, or begins one.
func (p *Pod) takeFirst(id string, req layers.Request) (*layers.Search, error) {
	if p.alone() == id {
		p.mu.Lock()
		o := p.first
		p.first = nil
		p.mu.Unlock()
		if o != nil {
			return o, nil
		}
	}
	return p.search(req)
}

// search begins to look for the layers of a root file system.
func (p *Pod) search(req layers.Request) (*layers.Search, error) {
	if s := layers.Begin(p.life.ctx, p.life.spawn, p.opts.Host.Layers, req); s != nil {
		return s, nil
	}
	return nil, errShutdown
}

// ociState is the state that hooks read.
func (p *Pod) ociState(s *specs.Spec, id, bundle string, status specs.ContainerState) specs.State {
	return specs.State{
		Version: s.Version, ID: id, Status: status, Pid: p.place.PID(), Bundle: bundle,
		Annotations: s.Annotations,
	}
}

// runStartHooks runs the hooks that make the container's surroundings.
func (p *Pod) runStartHooks(ctx context.Context, s *specs.Spec, id, bundle string) error {
	if s.Hooks == nil {
		return nil
	}
	st := p.ociState(s, id, bundle, specs.StateCreating)
	//lint:ignore SA1019 engines still use it
	if err := hooks.Run(ctx, "prestart", s.Hooks.Prestart, st); err != nil {
		return err
	}
	return hooks.Run(ctx, "createRuntime", s.Hooks.CreateRuntime, st)
}

// watch waits for the VM's end, or its agent's, and settles the processes' exits.
func (p *Pod) watch(ctx context.Context) {
	defer close(p.done)
	var err error
	select {
	case <-p.vm.Done():
	case <-p.agent.Gone():
		err = p.endWithoutAgent(ctx)
	case <-p.files.gone():
		err = p.endWithoutFiles(ctx)
	case why := <-p.doom:
		err = p.endCondemned(ctx, why)
	}
	p.mu.Lock()
	if err == nil {
		err = p.vm.Err()
	}
	if p.closing {
		err = errShutdown
	} else {
		p.death = err
	}
	p.mu.Unlock()
	if err == nil {
		err = fmt.Errorf("vm %s ended", p.vm.ID())
	}
	p.settleAll(err)
}

// endWithin gives a VM a moment to end, then ends it, for the reason that is logged: nothing in it can
// be controlled, or used, any more. It says whether it was ended so.
func (p *Pod) endWithin(ctx context.Context, patience time.Duration, why string) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-p.vm.Done():
		return false
	case <-t.C:
	case <-ctx.Done(): // Shutdown is running and stops the VM
		<-p.vm.Done()
		return false
	}
	p.log.Warn(why, "vm", p.vm.ID())
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undo.StepTimeout)
	defer cancel()
	if err := p.vm.Stop(sctx); err != nil {
		p.log.Error("stop a VM", "vm", p.vm.ID(), "error", err)
		if err := p.place.Abort(context.WithoutCancel(ctx)); err != nil {
			p.log.Error("kill a VM", "vm", p.vm.ID(), "error", err)
		}
	}
	<-p.vm.Done()
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
	p.phases = slices.DeleteFunc(p.phases, func(ph Phase) bool { return ph.Container == id })
}

// alone is the id of the container of a pod of one, else empty.
func (p *Pod) alone() string {
	if p.opts.First == nil {
		return ""
	}
	return p.opts.First.ID
}
