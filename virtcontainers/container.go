// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

var errBadID = fmt.Errorf("must be 1 to 128 letters, digits and _.-, the first a letter or digit: %w",
	errdefs.ErrInvalidArgument)

// validID tells what containerd takes for an id; a stock kata-agent wants container ids of two
// characters at least and says so itself.
func validID(id string) bool { return ident.ID(id) }

// container is a container in the VM.
type container struct {
	id, bundle string
	spec       *specs.Spec
	init       *process
	held       undo.Stack // releases its devices

	mu        sync.Mutex
	execs     map[string]*process // guarded by mu
	startTime time.Duration       // guarded by mu; the sum of CreateContainer and Start
	oom       time.Time           // guarded by mu; when its last OOM event was published
	deaf      int                 // guarded by mu; removals that the guest did not answer
}

// spent adds to the duration of the container's start.
func (c *container) spent(since time.Time) {
	d := time.Since(since)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startTime += d
}

func (c *container) addExec(pr *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.execs[pr.exec]; ok {
		return fmt.Errorf("%s: %w", pr.name(), errdefs.ErrAlreadyExists)
	}
	c.execs[pr.exec] = pr
	return nil
}

// processes are the first process and the execs.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []*process{c.init}
	for _, e := range c.execs {
		out = append(out, e)
	}
	return out
}

func (p *Pod) container(id string) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (p *Pod) process(containerID, execID string) (*process, error) {
	c, err := p.container(containerID)
	if err != nil {
		return nil, err
	}
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	pr, ok := c.execs[execID]
	if !ok {
		return nil, fmt.Errorf("%s: %w", stream.Process{Container: containerID, Exec: execID}, errdefs.ErrNotFound)
	}
	return pr, nil
}

// reserve takes the id, or refuses.
func (p *Pod) reserve(c *container) error {
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

func (p *Pod) isFirst(id string) bool { return p.alone() == id }

// CreateContainer makes a container in the guest, up to the point where its process waits to be
// started. On error nothing of it is left.
func (p *Pod) CreateContainer(ctx context.Context, req ContainerRequest) (_ stream.Streams, err error) {
	if !validID(req.ID) {
		return stream.Streams{}, fmt.Errorf("container id %q: %w", req.ID, errBadID)
	}
	c := &container{
		id: req.ID, bundle: req.Bundle, spec: req.Spec, execs: map[string]*process{},
		init: newProcess(req.ID, "", req.Terminal, req.wanted()),
	}
	if err := p.reserve(c); err != nil {
		return stream.Streams{}, err
	}
	defer c.spent(time.Now())
	var u undo.Stack
	u.Push("forget container "+c.id, func(context.Context) error { p.forget(c.id); return nil })
	defer u.RunOnError(&err)
	ctx, cancel := context.WithTimeoutCause(ctx, p.opts.Config.Runtime.CreateTimeout,
		fmt.Errorf("not done within runtime.create_timeout of %s: %w", p.opts.Config.Runtime.CreateTimeout,
			context.DeadlineExceeded))
	defer cancel()
	streams, err := p.createContainer(ctx, c, req, &u)
	if err != nil {
		return stream.Streams{}, guest.Named("create container "+c.id, err)
	}
	c.held.Adopt(&u)
	return streams, nil
}

func (p *Pod) createContainer(ctx context.Context, c *container, req ContainerRequest,
	u *undo.Stack,
) (stream.Streams, error) {
	mounts, err := p.volumes.Plan(req.share())
	if err != nil {
		return stream.Streams{}, err
	}
	if f := mounts.Message; f != nil {
		u.Push("close "+f.Name(), func(context.Context) error { return closeOnce(f) })
	}
	out, err := request.Convert(request.Input{
		ID: c.id, Spec: req.Spec, SharedShm: p.sharedShm, Binds: mounts.Binds,
		Disks: mounts.Disks(), Rlimits: p.rlimits,
	})
	if err != nil {
		return stream.Streams{}, err
	}
	c.init.expectTerminationMessage(mounts, out.OCI)
	if out.OCI.GetLinux().GetSeccomp() != nil && !p.agent.Features().Seccomp {
		return stream.Streams{}, fmt.Errorf("linux.seccomp: the guest's agent cannot apply filters: %w",
			errdefs.ErrNotImplemented)
	}
	shared, target, err := p.joinPIDs(c, out.SandboxPidNS)
	if err != nil {
		return stream.Streams{}, err
	}
	if !p.isFirst(c.id) && req.Spec.Hooks != nil { // the first one's ran before the VM was launched
		if err := p.runStartHooks(ctx, req.Spec, c.id, c.bundle); err != nil {
			return stream.Streams{}, err
		}
	}
	devices, err := p.volumes.Devices(ctx, mounts)
	if err != nil {
		return stream.Streams{}, err
	}
	storages, err := p.prepare(ctx, c, req, out.Copies, mounts, u)
	if err != nil {
		return stream.Streams{}, err
	}
	return p.createInGuest(ctx, c, request.Container(request.ContainerInput{
		ID: c.id, OCI: out.OCI, Terminal: req.Terminal, Storages: storages, Devices: devices, SharedPIDs: shared,
		PIDsOf: target,
	}), u)
}

// createInGuest opens the streams of a container's first process, has the agent create the container with them, and
// watches for the process's end.
func (p *Pod) createInGuest(ctx context.Context, c *container, req *agent.CreateContainerRequest,
	u *undo.Stack,
) (stream.Streams, error) {
	done, err := p.creates.Take(ctx)
	if err != nil {
		return stream.Streams{}, err
	}
	defer done()
	start := time.Now()
	s, n, err := stream.Open(ctx, p.life.ctx, p.agent, c.init.want, c.init.id())
	p.recordStep(c.id, "streams", start)
	if err != nil {
		return stream.Streams{}, p.agent.Fault(ctx, err)
	}
	c.init.setPipes(s)
	u.Push("close streams of container "+c.id, func(context.Context) error { return c.init.closePipes() })
	u.Push("remove container "+c.id+" in the guest", func(ctx context.Context) error { return p.removeInGuest(ctx, c) })
	req.StdinPort, req.StdoutPort, req.StderrPort = n.Stdin, n.Stdout, n.Stderr
	defer p.recordStep(c.id, "create", time.Now())
	if _, err := p.agent.CreateContainer(ctx, req); err != nil {
		return stream.Streams{}, p.agent.Fault(ctx, err)
	}
	if err := c.init.to(evCreated); err != nil {
		return stream.Streams{}, err
	}
	s.Serve(p.life.spawn, p.log)
	p.await(c.init)
	return s.Streams, nil
}

// removeInGuest removes a container from the guest. One that is not there, and a guest that is not,
// are fine.
func (p *Pod) removeInGuest(ctx context.Context, c *container) error {
	select {
	case <-p.vm.Done():
		return nil
	default:
	}
	err := p.agent.Call(ctx, "remove container "+c.id, func(ctx context.Context) error {
		_, err := p.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: c.id})
		return err
	})
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) { // the guest may count the time too
		p.notRemoved(c)
	}
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}

// Start starts a container's first process, or an exec, whose streams it returns.
func (p *Pod) Start(ctx context.Context, containerID, execID string) (stream.Streams, error) {
	c, err := p.container(containerID)
	if err != nil {
		return stream.Streams{}, err
	}
	pr, err := p.process(containerID, execID)
	if err != nil {
		return stream.Streams{}, err
	}
	if execID != "" {
		return p.startExec(ctx, c, pr)
	}
	if err := pr.to(evStart); err != nil {
		return stream.Streams{}, err
	}
	began := time.Now()
	defer c.spent(began)
	if err := p.nics.ConnectLate(ctx); err != nil {
		pr.startFailed()
		return stream.Streams{}, fmt.Errorf("start container %s: %w", c.id, err)
	}
	err = p.agent.Call(ctx, "start container "+c.id, func(ctx context.Context) error {
		_, err := p.agent.StartContainer(ctx, &agent.StartContainerRequest{ContainerId: c.id})
		return err
	})
	p.recordStep(c.id, "start", began)
	if err != nil {
		pr.startFailed()
		return stream.Streams{}, err
	}
	if err := pr.to(evStarted); err != nil {
		return stream.Streams{}, err
	}
	if h := c.spec.Hooks; h != nil && len(h.Poststart) > 0 {
		if err := hooks.Run(ctx, "poststart", h.Poststart,
			p.ociState(c.spec, c.id, c.bundle, specs.StateRunning)); err != nil {
			return stream.Streams{}, errors.Join(err, p.Kill(ctx, c.id, "", sigkill, true))
		}
	}
	return stream.Streams{}, nil
}

// Pause freezes a container.
func (p *Pod) Pause(ctx context.Context, containerID string) error {
	return p.freeze(ctx, containerID, evPause, evPaused, evPauseFailed, func(ctx context.Context) error {
		_, err := p.agent.PauseContainer(ctx, &agent.PauseContainerRequest{ContainerId: containerID})
		return err
	})
}

// Resume thaws a container.
func (p *Pod) Resume(ctx context.Context, containerID string) error {
	return p.freeze(ctx, containerID, evResume, evResumed, evResumeFailed, func(ctx context.Context) error {
		_, err := p.agent.ResumeContainer(ctx, &agent.ResumeContainerRequest{ContainerId: containerID})
		return err
	})
}

func (p *Pod) freeze(ctx context.Context, id string, claim, ok, failed event, do func(context.Context) error) error {
	c, err := p.container(id)
	if err != nil {
		return err
	}
	if err := c.init.to(claim); err != nil {
		return err
	}
	if err := p.agent.Call(ctx, claim.String()+" container "+id, do); err != nil {
		return errors.Join(err, c.init.to(failed))
	}
	return c.init.to(ok)
}

// Update changes a container's limits. The VM's own size does not change.
func (p *Pod) Update(ctx context.Context, containerID string, res *specs.LinuxResources) error {
	c, err := p.container(containerID)
	if err != nil {
		return err
	}
	if st := c.init.current().public(); st == Stopped {
		return fmt.Errorf("update container %s: it is %s: %w", c.id, st, errdefs.ErrFailedPrecondition)
	}
	req, err := request.Update(c.id, res)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	return p.agent.Call(ctx, "update container "+c.id, func(ctx context.Context) error {
		_, err := p.agent.UpdateContainer(ctx, req)
		return err
	})
}

// Stats reads a container's usage.
func (p *Pod) Stats(ctx context.Context, containerID string) (*agent.StatsContainerResponse, error) {
	c, err := p.container(containerID)
	if err != nil {
		return nil, err
	}
	var res *agent.StatsContainerResponse
	err = p.agent.Call(ctx, "stats of container "+c.id, func(ctx context.Context) (err error) {
		res, err = p.agent.StatsContainer(ctx, &agent.StatsContainerRequest{ContainerId: c.id})
		return err
	})
	return res, err
}

// mostPids bounds the list of processes in a guest's answer. It is Linux' default limit of pids.
const mostPids = 32 << 10

// Pids lists a container's processes by their pids in the guest. It lists the VMM's pid if the agent does not report
// them.
func (p *Pod) Pids(ctx context.Context, containerID string) ([]uint32, error) {
	stats, err := p.Stats(ctx, containerID)
	if err != nil {
		return nil, err
	}
	if pids := stats.GetPids(); len(pids) > 0 {
		return pids[:min(len(pids), mostPids)], nil
	}
	return []uint32{uint32(p.PID())}, nil //nolint:gosec // a pid
}

// Delete removes a process that has ended or was never started. A container's first process takes
// the container with it. In a pod of one the guest keeps it: the VM is ended next.
func (p *Pod) Delete(ctx context.Context, containerID, execID string) (ExitStatus, error) {
	c, err := p.container(containerID)
	if err != nil {
		return ExitStatus{}, err
	}
	pr, err := p.process(containerID, execID)
	if err != nil {
		return ExitStatus{}, err
	}
	if err := pr.to(evDelete); err != nil {
		return ExitStatus{}, err
	}
	if execID != "" {
		err = pr.closePipes()
		c.mu.Lock()
		delete(c.execs, execID)
		c.mu.Unlock()
		pr.settle(ExitStatus{}, false)
		return pr.status(), errors.Join(err, pr.to(evDeleted))
	}
	if err := p.release(ctx, c); err != nil {
		return ExitStatus{}, errors.Join(fmt.Errorf("delete container %s: %w", c.id, err), pr.to(evDeleteFailed))
	}
	pr.settle(ExitStatus{Code: killedCode}, false)
	return pr.status(), pr.to(evDeleted)
}

// release removes a container from the guest and releases its streams, its devices and its name.
func (p *Pod) release(ctx context.Context, c *container) error {
	var errs []error
	for _, pr := range c.processes() {
		errs = append(errs, pr.closePipes())
	}
	if p.isFirst(c.id) {
		p.forget(c.id)
		return errors.Join(errs...)
	}
	if err := c.held.Run(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if h := c.spec.Hooks; h != nil {
		errs = append(errs, hooks.RunAll(ctx, "poststop", h.Poststop, p.ociState(c.spec, c.id, c.bundle, specs.StateStopped)))
	}
	return errors.Join(errs...)
}
