// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package reap collects the exit status of every child of this process. As PID 1 of the guest the
// agent inherits all orphans. A second caller of wait(2) would steal statuses from the first, so
// all children are started through one Reaper. Processes that a runtime left behind (a container's
// init, an exec) are watched by pid.
//
// Lifecycle: New starts one goroutine; Close stops it. The package does not know what a container is.
package reap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Reaper owns wait(2) of this process.
type Reaper struct {
	sigs chan os.Signal
	quit chan struct{}
	done chan struct{}

	// mu is held while a child is forked: a status must not be collected before the child is known.
	mu    sync.Mutex
	kids  map[int]*Child             // guarded by mu
	holds int                        // guarded by mu
	kept  map[int]syscall.WaitStatus // guarded by mu; statuses of unknown children while holds > 0
}

// Child is a process whose exit the Reaper reports.
type Child struct {
	r      *Reaper
	pid    int
	done   chan struct{}
	status syscall.WaitStatus // valid once done is closed
}

// New starts a Reaper. There must be one per process.
func New() *Reaper {
	r := &Reaper{
		sigs: make(chan os.Signal, 1),
		quit: make(chan struct{}),
		done: make(chan struct{}),
		kids: make(map[int]*Child),
	}
	signal.Notify(r.sigs, unix.SIGCHLD)
	go r.loop()
	return r
}

// Close stops collecting. Children that still run are nobody's afterwards.
func (r *Reaper) Close() {
	signal.Stop(r.sigs)
	close(r.quit)
	<-r.done
}

func (r *Reaper) loop() {
	defer close(r.done)
	r.collect() // children that ended before the handler was set
	for {
		select {
		case <-r.sigs:
			r.collect()
		case <-r.quit:
			return
		}
	}
}

// collect takes every status that is ready. One signal may stand for many children.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c, ok := r.kids[pid]; ok {
			delete(r.kids, pid)
			c.status = ws
			close(c.done)
		} else if r.holds > 0 {
			r.kept[pid] = ws
		}
	}
}

// Spawn forks and executes path. The caller keeps the descriptors in attr.
func (r *Reaper) Spawn(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return r.addLocked(pid), nil
}

// Hold makes the Reaper remember statuses of processes that nobody watches yet, until the returned
// function is called. It closes the gap between a runtime that leaves a process behind and Watch.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds == 0 {
		r.kept = make(map[int]syscall.WaitStatus)
	}
	r.holds++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.holds--; r.holds == 0 {
			r.kept = nil
		}
	})
}

// Watch returns the child with the given pid. It must be called under Hold, held since before the
// process was left to us.
func (r *Reaper) Watch(pid int) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.kids[pid]; ok {
		return c, nil
	}
	if ws, ok := r.kept[pid]; ok {
		delete(r.kept, pid)
		c := &Child{r: r, pid: pid, done: make(chan struct{}), status: ws}
		close(c.done)
		return c, nil
	}
	if err := unix.Kill(pid, 0); err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return r.addLocked(pid), nil
}

func (r *Reaper) addLocked(pid int) *Child {
	c := &Child{r: r, pid: pid, done: make(chan struct{})}
	r.kids[pid] = c
	return c
}

// Pid is the process id; it may be reused by the kernel once Done is closed.
func (c *Child) Pid() int { return c.pid }

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait blocks until the process has ended or ctx is done.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ExitCode is the code of an ended process: its exit status, or 128+n after signal n.
func (c *Child) ExitCode() int {
	if c.status.Signaled() {
		return 128 + int(c.status.Signal())
	}
	return c.status.ExitStatus()
}

// Signal sends sig. The pid cannot have been reused: it is collected under the same lock.
func (c *Child) Signal(sig syscall.Signal) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	select {
	case <-c.done:
		return fmt.Errorf("signal process %d: ESRCH: No such process: %w", c.pid, errdefs.ErrNotFound)
	default:
	}
	if err := syscall.Kill(c.pid, sig); err != nil {
		return fmt.Errorf("signal process %d with %d: %w", c.pid, int(sig), err)
	}
	return nil
}
