// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/stdio"
	vcprocess "github.com/coco-shim/coco/virtcontainers/process"
)

// container is a task as containerd knows it.
type container struct {
	id       string
	dir      bundle.Dir
	sandbox  bool   // stands for the VM: no process in the guest
	pid      uint32 // of the VMM; containerd gets it as the pid of every process of the pod
	init     *process
	guest    Container // nil for a sandbox; set before creating ends
	hostPS   bool      // its engine looks pids up with the host's ps
	creating bool      // guarded by Service.mu

	mu      sync.Mutex
	execs   map[string]*process // guarded by mu
	freed   bool                // guarded by mu; the pod has deleted it
	killed  chan uint32         // of a sandbox: the code it shall exit with; capacity 1
	deleted bool                // guarded by mu; one Delete is under way
}

// process is an init or an exec.
type process struct {
	exec  string // "" for init
	stdio stdio.Config

	mu         sync.Mutex
	guest      Process       // guarded by mu; nil for a sandbox, and until the pod knows the process
	relay      *stdio.Relay  // guarded by mu; nil until it is open
	stdinEnded bool          // guarded by mu; CloseIO came before the relay
	started    bool          // guarded by mu; Start has succeeded
	starting   chan struct{} // guarded by mu; closed when no Start is under way
	watched    bool          // guarded by mu; a goroutine waits for its exit

	once   sync.Once
	exited chan struct{}        // closed when the exit was published
	status vcprocess.ExitStatus // valid once exited is closed
}

func newProcess(exec string, io stdio.Config) *process {
	idle := make(chan struct{})
	close(idle)
	return &process{exec: exec, stdio: io, starting: idle, exited: make(chan struct{})}
}

// process finds the init or an exec.
func (c *container) process(exec string) (*process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[exec]
	if p == nil {
		return nil, fmt.Errorf("process %s in container %s: %w", exec, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

func (c *container) addExec(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.exec] != nil {
		return fmt.Errorf("process %s in container %s: %w", p.exec, c.id, errdefs.ErrAlreadyExists)
	}
	c.execs[p.exec] = p
	return nil
}

func (c *container) removeExec(exec string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, exec)
}

func (c *container) listExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		list = append(list, p)
	}
	return list
}

// settle waits until the exit of every watched process has been published.
func (c *container) settle(ctx context.Context) error {
	for _, p := range append(c.listExecs(), c.init) {
		if p == nil || !p.isWatched() {
			continue
		}
		select {
		case <-p.exited:
		case <-ctx.Done():
			return fmt.Errorf("container %s: wait for the exit of process %q: %w", c.id, p.exec, ctx.Err())
		}
	}
	return nil
}

func (c *container) closeRelays() error {
	var errs []error
	for _, p := range append(c.listExecs(), c.init) {
		if p != nil {
			errs = append(errs, p.closeRelay())
		}
	}
	return errors.Join(errs...)
}

// beginStart claims the process for one Start. The exit is not published before the claim is settled.
func (p *process) beginStart() (settle func(ok bool), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.starting:
	default:
		return nil, fmt.Errorf("process is being started: %w", errdefs.ErrFailedPrecondition)
	}
	if p.started {
		return nil, fmt.Errorf("process was started before: %w", errdefs.ErrFailedPrecondition)
	}
	if p.hasExitedLocked() {
		return nil, fmt.Errorf("process has ended: %w", errdefs.ErrFailedPrecondition)
	}
	claim := make(chan struct{})
	p.starting = claim
	return func(ok bool) {
		p.mu.Lock()
		p.started = ok
		p.mu.Unlock()
		close(claim)
	}, nil
}

// awaitStart waits for a Start that is under way.
func (p *process) awaitStart() {
	p.mu.Lock()
	claim := p.starting
	p.mu.Unlock()
	<-claim
}

func (p *process) setGuest(g Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guest = g
}

// inGuest is the handle of the process in the guest.
func (p *process) inGuest() (Process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.guest == nil {
		return nil, fmt.Errorf("process %q: %w", p.exec, errdefs.ErrNotFound)
	}
	return p.guest, nil
}

func (p *process) hasExited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hasExitedLocked()
}

func (p *process) hasExitedLocked() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// isAlive reports whether the process runs or is being started.
func (p *process) isAlive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hasExitedLocked() {
		return false
	}
	select {
	case <-p.starting:
		return p.started
	default:
		return true
	}
}

func (p *process) wasStarted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started
}

func (p *process) isWatched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watched
}

func (p *process) setWatched() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched = true
}

// setRelay gives the process its open relay and repeats what came too early.
func (p *process) setRelay(r *stdio.Relay) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.relay = r
	if p.stdinEnded {
		return r.CloseStdin()
	}
	return nil
}

func (p *process) closeStdin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stdinEnded = true
	return p.relay.CloseStdin()
}

func (p *process) currentRelay() *stdio.Relay {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.relay
}

func (p *process) closeRelay() error { return p.currentRelay().Close() }

// end sets the status and publishes TaskExit under p.mu, so a client that reacts already sees the process stopped, and
// TaskDelete comes later. publish must not block. The first call counts.
func (p *process) end(st vcprocess.ExitStatus, publish func()) {
	p.once.Do(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.status = st
		publish()
		close(p.exited)
	})
}
