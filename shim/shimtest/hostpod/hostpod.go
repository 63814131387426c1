// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostpod is a pod that behaves and has no VM: its containers are processes of this host,
// changed into their root directories. It stands in for virtcontainers.Pod in tests of the shim,
// so that these run against a real containerd in milliseconds.
//
// Nothing is confined. Never use it for anything but tests.
package hostpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

// Process is an init or an exec.
type Process struct {
	pod      *Pod
	id, exec string // of the container, and of the exec
	spec     *specs.Process
	root     string
	terminal bool
	wants    [3]bool

	state  process.State
	cmd    *exec.Cmd
	tty    console.Console
	ours   stream.Streams
	theirs [3]*os.File
	done   chan struct{}
	exit   process.ExitStatus
}

// Pod is a pod of host processes. Its VM is a sleeping process whose death is the VM's.
type Pod struct {
	vm   *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	procs map[[2]string]*Process // guarded by mu; by container and exec id
	down  bool                   // guarded by mu; Shutdown was called
	err   error                  // guarded by mu; why the VM is gone

	mounts []string // of root file systems, guarded by mu
}

// New makes a pod.
func New() (*Pod, error) {
	p := &Pod{vm: exec.Command("sleep", "infinity"), done: make(chan struct{}), procs: map[[2]string]*Process{}}
	p.vm.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.vm.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := p.vm.Wait()
		p.mu.Lock()
		if !p.down {
			p.err = fmt.Errorf("vm ended: %w", err)
		}
		reason := p.err
		var alive []*Process
		for _, pr := range p.procs {
			alive = append(alive, pr)
		}
		p.mu.Unlock()
		close(p.done)
		for _, pr := range alive {
			p.mu.Lock()
			if pr.cmd == nil && pr.state != process.Stopped {
				p.endLocked(pr, process.ExitStatus{Code: 137, At: time.Now()})
			}
			if reason != nil && pr.state != process.Stopped {
				pr.exit.Reason = reason.Error()
			}
			cmd := pr.cmd
			p.mu.Unlock()
			if cmd != nil {
				_ = cmd.Process.Kill()
			}
		}
	}()
	return p, nil
}

// PID is the VM's.
func (p *Pod) PID() int { return p.vm.Process.Pid }

// Done is closed when the VM is gone.
func (p *Pod) Done() <-chan struct{} { return p.done }

// Err says why.
func (p *Pod) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// EndVM ends the VM and leaves what the host has of it.
func (p *Pod) EndVM(context.Context) error {
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	_ = p.vm.Process.Kill()
	<-p.done
	return nil
}

// Shutdown ends the VM and everything in it.
func (p *Pod) Shutdown(context.Context) error {
	p.mu.Lock()
	p.down = true
	mounts := p.mounts
	p.mounts = nil
	p.mu.Unlock()
	_ = p.vm.Process.Kill()
	<-p.done
	var errs []error
	for _, m := range mounts {
		errs = append(errs, unix.Unmount(m, unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}

// Cleanup unmounts the root file system of a pod whose shim is gone. Its processes died with it.
func Cleanup(_ context.Context, bundle string) error {
	err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not mounted
	}
	return err
}

// Container is a root file system with processes.
type Container struct{ init *Process }

// Init is its first process.
func (c *Container) Init() *Process { return c.init }

// CreateContainer makes the streams; the process starts with Start.
func (p *Pod) CreateContainer(_ context.Context, r virtcontainers.ContainerRequest) (*Container, stream.Streams,
	error,
) {
	root := r.Spec.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(r.Bundle, root)
	}
	for _, m := range r.Rootfs {
		if err := mount(m, root); err != nil {
			return nil, stream.Streams{}, err
		}
		p.mu.Lock()
		p.mounts = append(p.mounts, root)
		p.mu.Unlock()
	}
	pr := &Process{
		pod: p, id: r.ID, spec: r.Spec.Process, root: root, terminal: r.Terminal, wants: [3]bool{r.Stdin, r.Stdout, r.Stderr},
	}
	if err := p.add(r.ID, "", pr); err != nil {
		return nil, stream.Streams{}, err
	}
	if err := pr.open(); err != nil {
		return nil, stream.Streams{}, err
	}
	return &Container{pr}, pr.ours, nil
}

func mount(m virtcontainers.Mount, root string) error {
	var flags uintptr
	var data []string
	for _, o := range m.Options {
		switch o {
		case "rbind", "bind":
			flags |= unix.MS_BIND
		case "ro":
			flags |= unix.MS_RDONLY
		case "rw":
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(m.Source, root, m.Type, flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	return nil
}

func (p *Pod) add(id, execID string, pr *Process) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.procs[[2]string{id, execID}] != nil {
		return errdefs.ErrAlreadyExists
	}
	pr.state, pr.done = process.Created, make(chan struct{})
	p.procs[[2]string{id, execID}] = pr
	return nil
}

// known refuses a process that was deleted.
func (pr *Process) known() error {
	p := pr.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.procs[[2]string{pr.id, pr.exec}] != pr {
		return fmt.Errorf("process %q of %s: %w", pr.exec, pr.id, errdefs.ErrNotFound)
	}
	return nil
}

// open makes the pipes or the terminal.
func (pr *Process) open() error {
	if pr.terminal {
		pty, slave, err := console.NewPty()
		if err != nil {
			return err
		}
		s, err := os.OpenFile(slave, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		pr.tty = pty
		pr.theirs = [3]*os.File{s, s, s}
		pr.ours = stream.Streams{Stdin: ptyIn{pty}, Stdout: ptyOut{pty}}
		return nil
	}
	for i, want := range pr.wants {
		if !want {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		switch i {
		case 0:
			pr.theirs[0], pr.ours.Stdin = r, w
		case 1:
			pr.theirs[1], pr.ours.Stdout = w, r
		default:
			pr.theirs[2], pr.ours.Stderr = w, r
		}
	}
	return nil
}

// ptyIn's end of input is the character that says so; ptyOut's end is EIO.
type (
	ptyIn  struct{ console.Console }
	ptyOut struct{ console.Console }
)

func (p ptyIn) Close() error { _, err := p.Console.Write([]byte{4}); return err }

func (p ptyOut) Read(b []byte) (int, error) {
	n, err := p.Console.Read(b)
	if errors.Is(err, syscall.EIO) {
		err = io.EOF
	}
	return n, err
}

// Exec records a process.
func (c *Container) Exec(r virtcontainers.ExecRequest) (*Process, error) {
	pr := &Process{
		pod: c.init.pod, id: c.init.id, exec: r.ID,
		spec: r.Process, root: c.init.root, terminal: r.Terminal, wants: [3]bool{r.Stdin, r.Stdout, r.Stderr},
	}
	if err := c.init.known(); err != nil {
		return nil, err
	}
	return pr, pr.pod.add(pr.id, pr.exec, pr)
}

// Start runs the process.
func (pr *Process) Start(context.Context) (stream.Streams, error) {
	p := pr.pod
	if err := pr.known(); err != nil {
		return stream.Streams{}, err
	}
	if pr.exec != "" {
		if err := pr.open(); err != nil {
			return stream.Streams{}, err
		}
	}
	cmd := &exec.Cmd{Path: pr.spec.Args[0], Args: pr.spec.Args, Env: pr.spec.Env, Dir: pr.spec.Cwd}
	if !filepath.IsAbs(cmd.Path) {
		cmd.Path = lookPath(pr.root, cmd.Path)
	}
	for i, f := range []*os.File{pr.theirs[0], pr.theirs[1], pr.theirs[2]} {
		if f == nil {
			continue
		}
		switch i {
		case 0:
			cmd.Stdin = f
		case 1:
			cmd.Stdout = f
		default:
			cmd.Stderr = f
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: pr.root, Setsid: true, Setctty: pr.terminal, Pdeathsig: syscall.SIGKILL}
	err := cmd.Start()
	for _, f := range pr.theirs {
		if f != nil {
			_ = f.Close()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.endLocked(pr, process.ExitStatus{Code: 127, At: time.Now()})
		return stream.Streams{}, fmt.Errorf("start %s: %w: %w", cmd.Path, err, errdefs.ErrInvalidArgument)
	}
	pr.cmd, pr.state = cmd, process.Running
	go p.reap(pr)
	if pr.exec == "" {
		return stream.Streams{}, nil
	}
	return pr.ours, nil
}

func lookPath(root, name string) string {
	for _, d := range []string{"/bin", "/usr/bin", "/sbin", "/usr/sbin"} {
		if _, err := os.Stat(filepath.Join(root, d, name)); err == nil {
			return filepath.Join(d, name)
		}
	}
	return name
}

func (p *Pod) reap(pr *Process) {
	_ = pr.cmd.Wait()
	ws, _ := pr.cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := uint32(ws.ExitStatus())
	if ws.Signaled() {
		code = 128 + uint32(ws.Signal())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(pr, process.ExitStatus{Code: code, At: time.Now(), Reason: pr.exit.Reason})
}

func (p *Pod) endLocked(pr *Process, st process.ExitStatus) {
	if pr.state == process.Stopped {
		return
	}
	pr.state, pr.exit = process.Stopped, st
	if pr.cmd == nil { // never ran: nobody else closes the far ends
		for _, f := range pr.theirs {
			if f != nil {
				_ = f.Close()
			}
		}
	}
	close(pr.done)
}

// Wait waits for its end.
func (pr *Process) Wait(ctx context.Context) (process.ExitStatus, error) {
	select {
	case <-pr.done:
		return pr.exit, nil
	case <-ctx.Done():
		return process.ExitStatus{}, ctx.Err()
	}
}

// Kill sends a signal.
func (pr *Process) Kill(_ context.Context, sig uint32, all bool) error {
	p := pr.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case pr.state == process.Stopped:
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case pr.cmd == nil:
		p.endLocked(pr, process.ExitStatus{Code: 128 + sig, At: time.Now()})
		return nil
	}
	if sig == uint32(unix.SIGKILL) || all {
		return unix.Kill(-pr.cmd.Process.Pid, syscall.Signal(sig))
	}
	return pr.cmd.Process.Signal(syscall.Signal(sig))
}

// Resize sets the size of the terminal.
func (pr *Process) Resize(_ context.Context, w, h uint32) error {
	if pr.tty == nil {
		return errdefs.ErrFailedPrecondition
	}
	return pr.tty.Resize(console.WinSize{Width: uint16(w), Height: uint16(h)})
}

// State says where the process stands.
func (pr *Process) State() (process.State, process.ExitStatus) {
	pr.pod.mu.Lock()
	defer pr.pod.mu.Unlock()
	return pr.state, pr.exit
}

// Pause stops the container's processes.
func (c *Container) Pause(context.Context) error {
	return c.flip(syscall.SIGSTOP, process.Running, process.Paused)
}

// Resume lets them go on.
func (c *Container) Resume(context.Context) error {
	return c.flip(syscall.SIGCONT, process.Paused, process.Running)
}

func (c *Container) flip(sig syscall.Signal, from, to process.State) error {
	pr := c.init
	pr.pod.mu.Lock()
	defer pr.pod.mu.Unlock()
	if pr.state != from {
		return fmt.Errorf("container %s is %s: %w", pr.id, pr.state, errdefs.ErrFailedPrecondition)
	}
	pr.state = to
	return unix.Kill(-pr.cmd.Process.Pid, sig)
}

// Update accepts everything.
func (c *Container) Update(context.Context, *specs.LinuxResources) error { return c.init.known() }

// Stats makes up a few numbers, and numbers the running processes as a guest would.
func (c *Container) Stats(context.Context) (*agent.StatsContainerResponse, error) {
	if err := c.init.known(); err != nil {
		return nil, err
	}
	p := c.init.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	var pids []uint32
	for key, pr := range p.procs {
		if key[0] == c.init.id && pr.state == process.Running {
			pids = append(pids, uint32(len(pids)+1))
		}
	}
	return &agent.StatsContainerResponse{
		Pids: pids,
		CgroupStats: &agent.CgroupStats{
			PidsStats:   &agent.PidsStats{Current: 1},
			MemoryStats: &agent.MemoryStats{Usage: &agent.MemoryData{Usage: 4096, Limit: 1 << 30}},
			CpuStats:    &agent.CpuStats{CpuUsage: &agent.CpuUsage{TotalUsage: 5_000_000}},
		},
		NetworkStats: []*agent.NetworkStats{{Name: "eth0", RxBytes: 7, TxBytes: 9}},
	}, nil
}

// Delete forgets the process, or a container with all its processes.
func (pr *Process) Delete(context.Context) (process.ExitStatus, error) {
	p := pr.pod
	if err := pr.known(); err != nil {
		return process.ExitStatus{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr.cmd != nil && pr.state != process.Stopped {
		return process.ExitStatus{}, fmt.Errorf("process %q of %s runs: %w", pr.exec, pr.id, errdefs.ErrFailedPrecondition)
	}
	p.endLocked(pr, process.ExitStatus{Code: 137, At: time.Now()})
	for key, q := range p.procs {
		if key[0] != pr.id || (pr.exec != "" && key[1] != pr.exec) {
			continue
		}
		if q.tty != nil {
			_ = q.tty.Close()
		}
		delete(p.procs, key)
	}
	return pr.exit, nil
}
