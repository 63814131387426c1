// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/upper"
)

var errBadID = fmt.Errorf("must be 1 to 128 letters, digits and _.-, the first a letter or digit: %w",
	errdefs.ErrInvalidArgument)

// validID tells what containerd takes for an id; a stock kata-agent wants container ids of two
// characters at least and says so itself.
func validID(id string) bool { return ident.ID(id) }

// Container is a container in the VM. Its methods may be called from several goroutines.
type Container struct {
	pod        *Pod
	id, bundle string
	spec       *specs.Spec
	init       *process.Process
	held       undo.Stack // releases its devices
	mounts     *share.Mounts
	watch      atomic.Pointer[upper.Watch]

	mu        sync.Mutex
	execs     map[string]*process.Process // guarded by mu
	startTime time.Duration               // guarded by mu; the sum of CreateContainer and Start
	oom       time.Time                   // guarded by mu; when its last OOM event was published
	deaf      int                         // guarded by mu; removals that the guest did not answer
}

// newContainer makes the record of a container that is to be created.
func (p *Pod) newContainer(req ContainerRequest) *Container {
	c := &Container{
		pod: p, id: req.ID, bundle: req.Bundle, spec: req.Spec, execs: map[string]*process.Process{},
	}
	c.init = process.New(p.procs, c.id, req.wanted(), process.Owner{
		Start: c.start, Started: c.started, Ended: c.ended, Remove: c.remove,
	})
	return c
}

// Init is the container's first process. Starting it starts the container; deleting it removes the container.
func (c *Container) Init() *process.Process { return c.init }

// spent adds to the duration of the container's start.
func (c *Container) spent(since time.Time) {
	d := time.Since(since)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startTime += d
}

// isFirst reports whether the pod is this container's alone.
func (c *Container) isFirst() bool { return c.pod.alone() == c.id }

// processes are the first process and the execs.
func (c *Container) processes() []*process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []*process.Process{c.init}
	for _, e := range c.execs {
		out = append(out, e)
	}
	return out
}

// start has the guest start the container.
func (c *Container) start(ctx context.Context) error {
	began := time.Now()
	defer c.spent(began)
	if err := c.pod.m.NICs.ConnectLate(ctx); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if err := c.renewFiles(ctx); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	err := c.pod.m.Agent.Call(ctx, "start container "+c.id, func(ctx context.Context) error {
		_, err := c.pod.m.Agent.StartContainer(ctx, &agent.StartContainerRequest{ContainerId: c.id})
		return err
	})
	c.pod.recordStep(c.id, "start", began)
	return err
}

// renewFiles brings files up to date that the engine has changed since the container was created: Docker 28 writes its
// resolv.conf between creation and start.
func (c *Container) renewFiles(ctx context.Context) error {
	if !c.isFirst() {
		return nil
	}
	if err := c.pod.m.Volumes.Renew(ctx, c.mounts); err != nil {
		return err
	}
	return c.pod.m.AskNames(ctx)
}

// started begins what lasts as long as the container runs, and runs the hooks that follow the start.
func (c *Container) started(ctx context.Context) error {
	c.watchFiles()
	if h := c.spec.Hooks; h != nil && len(h.Poststart) > 0 {
		return hooks.Run(ctx, "poststart", h.Poststart, c.state(specs.StateRunning))
	}
	return nil
}

// state is the state that the container's hooks read.
func (c *Container) state(s specs.ContainerState) specs.State {
	return hooks.State(c.spec, c.id, c.bundle, s, c.pod.PID())
}

// Exec records a further process. The guest gets it in its Start.
func (c *Container) Exec(req ExecRequest) (*process.Process, error) {
	if !validID(req.ID) {
		return nil, fmt.Errorf("exec id %q: %w", req.ID, errBadID)
	}
	if st := c.init.Current(); !st.TakesExecs() {
		return nil, fmt.Errorf("exec %s: container %s is %s: %w", req.ID, c.id, st, errdefs.ErrFailedPrecondition)
	}
	r, err := request.Exec(request.ExecInput{
		Container: c.id, ID: req.ID, Process: req.Process, Terminal: req.Terminal, Rlimits: c.pod.m.Rlimits,
	})
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", req.ID, err)
	}
	pr := process.NewExec(c.pod.procs, r, req.wanted(), process.Owner{MayStart: c.mayExec, Remove: c.forgetExec(req.ID)})
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.execs[req.ID]; ok {
		return nil, fmt.Errorf("%s: %w", pr, errdefs.ErrAlreadyExists)
	}
	c.execs[req.ID] = pr
	return pr, nil
}

// runs refuses what needs a running container.
func (c *Container) runs() error {
	if st := c.init.Current(); st != process.Running {
		return fmt.Errorf("the container is %s: %w", st, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (c *Container) forgetExec(id string) func(context.Context) error {
	return func(context.Context) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.execs, id)
		return nil
	}
}

// Pause freezes the container and brings the files back that it has written: engines pause a container to commit it.
func (c *Container) Pause(ctx context.Context) error {
	return c.init.Pause(func() error {
		err := c.pod.m.Agent.Call(ctx, "pause container "+c.id, func(ctx context.Context) error {
			_, err := c.pod.m.Agent.PauseContainer(ctx, &agent.PauseContainerRequest{ContainerId: c.id})
			return err
		})
		if err != nil {
			return err
		}
		if err := c.keepFiles(ctx); err != nil {
			err = fmt.Errorf("pause container %s: its files cannot be brought to its engine (runtime.keep_files): %w", c.id, err)
			return errors.Join(err, c.thaw(context.WithoutCancel(ctx)))
		}
		return nil
	})
}

// Resume thaws the container.
func (c *Container) Resume(ctx context.Context) error {
	return c.init.Resume(func() error { return c.thaw(ctx) })
}

func (c *Container) thaw(ctx context.Context) error {
	return c.pod.m.Agent.Call(ctx, "resume container "+c.id, func(ctx context.Context) error {
		_, err := c.pod.m.Agent.ResumeContainer(ctx, &agent.ResumeContainerRequest{ContainerId: c.id})
		return err
	})
}

// Update changes the container's limits. The VM's own size does not change.
func (c *Container) Update(ctx context.Context, res *specs.LinuxResources) error {
	if st, _ := c.init.State(); st == process.Stopped {
		return fmt.Errorf("update container %s: it is %s: %w", c.id, st, errdefs.ErrFailedPrecondition)
	}
	req, err := request.Update(c.id, res)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	return c.pod.m.Agent.Call(ctx, "update container "+c.id, func(ctx context.Context) error {
		_, err := c.pod.m.Agent.UpdateContainer(ctx, req)
		return err
	})
}

// Stats reads the container's usage.
func (c *Container) Stats(ctx context.Context) (res *agent.StatsContainerResponse, err error) {
	err = c.pod.m.Agent.Call(ctx, "stats of container "+c.id, func(ctx context.Context) (err error) {
		res, err = c.pod.m.Agent.StatsContainer(ctx, &agent.StatsContainerRequest{ContainerId: c.id})
		return err
	})
	return res, err
}

// remove releases the container's streams, removes it from the guest, and releases its devices and its name. In a pod
// of one the guest keeps it: the VM is ended next.
func (c *Container) remove(ctx context.Context) error {
	var errs []error
	for _, pr := range c.processes() {
		errs = append(errs, pr.CloseStreams())
	}
	if c.isFirst() {
		c.pod.forget(c.id)
		return errors.Join(errs...)
	}
	if err := c.held.Run(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if h := c.spec.Hooks; h != nil {
		errs = append(errs, hooks.RunAll(ctx, "poststop", h.Poststop, c.state(specs.StateStopped)))
	}
	return errors.Join(errs...)
}

// removeInGuest removes the container from the guest. One that is not there, and a guest that is not,
// are fine.
func (c *Container) removeInGuest(ctx context.Context) error {
	select {
	case <-c.pod.m.VM.Done():
		return nil
	default:
	}
	err := c.pod.m.Agent.Call(ctx, "remove container "+c.id, func(ctx context.Context) error {
		_, err := c.pod.m.Agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: c.id})
		return err
	})
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) { // the guest may count the time too
		c.notRemoved()
	}
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}

// deafRemovals is how many times the guest may leave the removal of a container unanswered, for undo.StepTimeout each.
const deafRemovals = 3

// notRemoved is called when the guest has not answered the removal of the container in time.
func (c *Container) notRemoved() {
	c.mu.Lock()
	c.deaf++
	enough := c.deaf >= deafRemovals
	c.mu.Unlock()
	if enough {
		c.pod.condemn(fmt.Errorf("the guest left the removal of container %s unanswered %d times", c.id, deafRemovals))
	}
}
