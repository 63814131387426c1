// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package runner creates, starts and deletes containers from bundles by an OCI runtime binary, and
// starts further processes in them. Signals, limits and freezing need no runtime: callers do them
// by pid and cgroup.
//
// Every call of the runtime costs tens of milliseconds under emulation, so it is called only to create and
// to exec. It is executed from a sealed file, so that it need not copy itself first (seal). Starting a container
// that crun created is one byte into its exec FIFO, and deleting one is removing its cgroup and its state
// directory (crun 1.x, status.c and container.c). With another runtime, or with hooks to run, the runtime does both.
package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/cgroup"
	"github.com/coco-shim/coco/agent/reap"
)

// Process is a process that the runtime left to us.
type Process interface {
	Pid() int
	Done() <-chan struct{}
	ExitCode() int // valid once Done is closed
	Signal(syscall.Signal) error
}

// Streams are a process's standard streams; package stdio has them.
type Streams interface {
	Files() []*os.File            // descriptors 0 to 2, or nil with a terminal
	Attach(master *os.File) error // gives the terminal, which begins the copying
	Start()                       // begins the copying; the process holds its descriptors
}

// Config says which runtime and where.
type Config struct {
	Binary     string // path of the runtime
	StateDir   string // the runtime's --root
	WorkDir    string // short path for sockets and logs of single calls
	CgroupRoot string
	Reaper     *reap.Reaper
}

// Container is what Create needs.
type Container struct {
	ID, Bundle string
	Spec       *specs.Spec // its CgroupsPath is a path below the hierarchy
	Streams    Streams
}

// Exec is a further process of a container.
type Exec struct {
	ContainerID string
	Process     *specs.Process
	Streams     Streams
}

// Runtime runs containers by a runtime binary.
type Runtime struct {
	cfg     Config
	direct  bool // starts and deletes without the runtime
	calls   atomic.Uint64
	seccomp func() error

	mu     sync.Mutex
	known  map[string]known // guarded by mu
	sealed *os.File         // guarded by mu; the binary as it is executed; nil until it is needed
}

// known has the data that a container's deletion needs.
type known struct {
	cgroup          string
	startHooks, end bool // poststart and poststop hooks
}

// New makes a Runtime. The binary is looked at when it is first needed.
func New(cfg Config) *Runtime {
	r := &Runtime{cfg: cfg, direct: filepath.Base(cfg.Binary) == "crun", known: map[string]known{}}
	r.seccomp = sync.OnceValue(func() error { return checkSeccomp(cfg.Binary) })
	return r
}

// Create writes the bundle's config.json and makes the container; its init process waits for Start.
// After an error nothing of the container is left. Its caller names the container in the error, as that of Exec does.
func (r *Runtime) Create(ctx context.Context, c Container) (_ Process, err error) {
	if c.Spec.Linux.Seccomp != nil {
		if err := r.seccomp(); err != nil {
			return nil, err
		}
	}
	if err := writeJSON(filepath.Join(c.Bundle, "config.json"), c.Spec); err != nil {
		return nil, err
	}
	if err := r.remember(c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Delete(context.WithoutCancel(ctx), c.ID))
		}
	}()
	return r.call(ctx, invocation{
		verb:    "create",
		args:    []string{"--bundle", c.Bundle},
		id:      c.ID,
		streams: c.Streams,
	})
}

func (r *Runtime) remember(c Container) error {
	k := known{cgroup: c.Spec.Linux.CgroupsPath}
	if h := c.Spec.Hooks; h != nil {
		k.startHooks, k.end = len(h.Poststart) > 0, len(h.Poststop) > 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[c.ID]; ok {
		return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	r.known[c.ID] = k
	return nil
}

func (r *Runtime) lookup(id string) (known, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.known[id]
	if !ok {
		return known{}, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return k, nil
}

// Start lets the container's init process run.
func (r *Runtime) Start(ctx context.Context, id string) error {
	k, err := r.lookup(id)
	if err != nil {
		return err
	}
	if !r.direct || k.startHooks {
		_, err := r.call(ctx, invocation{verb: "start", id: id})
		return err
	}
	// crun's init polls the FIFO and takes one byte; the FIFO's absence marks the container as
	// started. Non-blocking, because a FIFO without a reader means that init is gone.
	fifo := filepath.Join(r.cfg.StateDir, id, "exec.fifo")
	f, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("start container %s: its init process is gone or was started: %w", id, err)
	}
	defer f.Close()
	if err := os.Remove(fifo); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if _, err := f.Write([]byte{0}); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	return nil
}

// Exec starts a further process in a container.
func (r *Runtime) Exec(ctx context.Context, e Exec) (Process, error) {
	if _, err := r.lookup(e.ContainerID); err != nil {
		return nil, err
	}
	return r.call(ctx, invocation{
		verb:    "exec",
		args:    []string{"--detach"},
		process: e.Process,
		id:      e.ContainerID,
		streams: e.Streams,
	})
}

// Delete kills the remaining processes of a container and removes it. It can be repeated after an error.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	k, err := r.lookup(id)
	if err != nil {
		return err
	}
	group := cgroup.At(r.cfg.CgroupRoot, k.cgroup)
	if err := group.Kill(); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	if !r.direct || k.end {
		if _, err := r.call(ctx, invocation{verb: "delete", args: []string{"--force"}, id: id}); err != nil {
			return err
		}
	}
	if err := group.Remove(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	if err := removeState(filepath.Join(r.cfg.StateDir, id)); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, id)
	return nil
}

// removeState removes the runtime's directory of a container, in which it may have mounted.
func removeState(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
	return os.RemoveAll(dir)
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}
