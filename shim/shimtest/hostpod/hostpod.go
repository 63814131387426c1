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
	"github.com/coco-shim/coco/virtcontainers/stream"
)

type proc struct {
	spec     *specs.Process
	root     string
	terminal bool
	wants    [3]bool

	state  virtcontainers.State
	cmd    *exec.Cmd
	tty    console.Console
	ours   stream.Streams
	theirs [3]*os.File
	done   chan struct{}
	exit   virtcontainers.ExitStatus
}

// Pod is a pod of host processes. Its VM is a sleeping process whose death is the VM's.
type Pod struct {
	vm   *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	procs map[[2]string]*proc // guarded by mu; by container and exec id
	down  bool                // guarded by mu; Shutdown was called
	err   error               // guarded by mu; why the VM is gone

	mounts []string // of root file systems, guarded by mu
}

// New makes a pod.
func New() (*Pod, error) {
	p := &Pod{vm: exec.Command("sleep", "infinity"), done: make(chan struct{}), procs: map[[2]string]*proc{}}
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
		var alive []*proc
		for _, pr := range p.procs {
			alive = append(alive, pr)
		}
		p.mu.Unlock()
		close(p.done)
		for _, pr := range alive {
			p.mu.Lock()
			if pr.cmd == nil && pr.state != virtcontainers.Stopped {
				p.endLocked(pr, virtcontainers.ExitStatus{Code: 137, At: time.Now()})
			}
			if reason != nil && pr.state != virtcontainers.Stopped {
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

// CreateContainer makes the streams; the process starts with Start.
func (p *Pod) CreateContainer(_ context.Context, r virtcontainers.ContainerRequest) (stream.Streams, error) {
	root := r.Spec.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(r.Bundle, root)
	}
	for _, m := range r.Rootfs {
		if err := mount(m, root); err != nil {
			return stream.Streams{}, err
		}
		p.mu.Lock()
		p.mounts = append(p.mounts, root)
		p.mu.Unlock()
	}
	pr := &proc{spec: r.Spec.Process, root: root, terminal: r.Terminal, wants: [3]bool{r.Stdin, r.Stdout, r.Stderr}}
	if err := p.add(r.ID, "", pr); err != nil {
		return stream.Streams{}, err
	}
	if err := pr.open(); err != nil {
		return stream.Streams{}, err
	}
	return pr.ours, nil
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

func (p *Pod) add(id, execID string, pr *proc) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.procs[[2]string{id, execID}] != nil {
		return errdefs.ErrAlreadyExists
	}
	pr.state, pr.done = virtcontainers.Created, make(chan struct{})
	p.procs[[2]string{id, execID}] = pr
	return nil
}

func (p *Pod) get(id, execID string) (*proc, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := p.procs[[2]string{id, execID}]
	if pr == nil {
		return nil, fmt.Errorf("process %q of %s: %w", execID, id, errdefs.ErrNotFound)
	}
	return pr, nil
}

// open makes the pipes or the terminal.
func (pr *proc) open() error {
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
func (p *Pod) Exec(_ context.Context, r virtcontainers.ExecRequest) error {
	init, err := p.get(r.ContainerID, "")
	if err != nil {
		return err
	}
	return p.add(r.ContainerID, r.ExecID, &proc{
		spec: r.Process, root: init.root, terminal: r.Terminal, wants: [3]bool{r.Stdin, r.Stdout, r.Stderr},
	})
}

// Start runs a process.
func (p *Pod) Start(_ context.Context, id, execID string) (stream.Streams, error) {
	pr, err := p.get(id, execID)
	if err != nil {
		return stream.Streams{}, err
	}
	if execID != "" {
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
	err = cmd.Start()
	for _, f := range pr.theirs {
		if f != nil {
			_ = f.Close()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.endLocked(pr, virtcontainers.ExitStatus{Code: 127, At: time.Now()})
		return stream.Streams{}, fmt.Errorf("start %s: %w: %w", cmd.Path, err, errdefs.ErrInvalidArgument)
	}
	pr.cmd, pr.state = cmd, virtcontainers.Running
	go p.reap(pr)
	if execID == "" {
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

func (p *Pod) reap(pr *proc) {
	_ = pr.cmd.Wait()
	ws, _ := pr.cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := uint32(ws.ExitStatus())
	if ws.Signaled() {
		code = 128 + uint32(ws.Signal())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(pr, virtcontainers.ExitStatus{Code: code, At: time.Now(), Reason: pr.exit.Reason})
}

func (p *Pod) endLocked(pr *proc, st virtcontainers.ExitStatus) {
	if pr.state == virtcontainers.Stopped {
		return
	}
	pr.state, pr.exit = virtcontainers.Stopped, st
	if pr.cmd == nil { // never ran: nobody else closes the far ends
		for _, f := range pr.theirs {
			if f != nil {
				_ = f.Close()
			}
		}
	}
	close(pr.done)
}

// Wait waits for a process.
func (p *Pod) Wait(ctx context.Context, id, execID string) (virtcontainers.ExitStatus, error) {
	pr, err := p.get(id, execID)
	if err != nil {
		return virtcontainers.ExitStatus{}, err
	}
	select {
	case <-pr.done:
		return pr.exit, nil
	case <-ctx.Done():
		return virtcontainers.ExitStatus{}, ctx.Err()
	}
}

// Kill sends a signal.
func (p *Pod) Kill(_ context.Context, id, execID string, sig uint32, all bool) error {
	pr, err := p.get(id, execID)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case pr.state == virtcontainers.Stopped:
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case pr.cmd == nil:
		p.endLocked(pr, virtcontainers.ExitStatus{Code: 128 + sig, At: time.Now()})
		return nil
	}
	if sig == uint32(unix.SIGKILL) || all {
		return unix.Kill(-pr.cmd.Process.Pid, syscall.Signal(sig))
	}
	return pr.cmd.Process.Signal(syscall.Signal(sig))
}

// Resize sets the size of a terminal.
func (p *Pod) Resize(_ context.Context, id, execID string, w, h uint32) error {
	pr, err := p.get(id, execID)
	if err != nil {
		return err
	}
	if pr.tty == nil {
		return errdefs.ErrFailedPrecondition
	}
	return pr.tty.Resize(console.WinSize{Width: uint16(w), Height: uint16(h)})
}

// State says where a process stands.
func (p *Pod) State(id, execID string) (virtcontainers.State, virtcontainers.ExitStatus, error) {
	pr, err := p.get(id, execID)
	if err != nil {
		return 0, virtcontainers.ExitStatus{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return pr.state, pr.exit, nil
}

// Pause stops a container's processes.
func (p *Pod) Pause(_ context.Context, id string) error {
	return p.flip(id, syscall.SIGSTOP, virtcontainers.Running, virtcontainers.Paused)
}

// Resume lets them go on.
func (p *Pod) Resume(_ context.Context, id string) error {
	return p.flip(id, syscall.SIGCONT, virtcontainers.Paused, virtcontainers.Running)
}

func (p *Pod) flip(id string, sig syscall.Signal, from, to virtcontainers.State) error {
	pr, err := p.get(id, "")
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr.state != from {
		return fmt.Errorf("container %s is %s: %w", id, pr.state, errdefs.ErrFailedPrecondition)
	}
	pr.state = to
	return unix.Kill(-pr.cmd.Process.Pid, sig)
}

// Update accepts everything.
func (p *Pod) Update(_ context.Context, id string, _ *specs.LinuxResources) error {
	_, err := p.get(id, "")
	return err
}

// Stats makes up a few numbers.
func (p *Pod) Stats(_ context.Context, id string) (*agent.StatsContainerResponse, error) {
	if _, err := p.get(id, ""); err != nil {
		return nil, err
	}
	return &agent.StatsContainerResponse{
		CgroupStats: &agent.CgroupStats{
			PidsStats:   &agent.PidsStats{Current: 1},
			MemoryStats: &agent.MemoryStats{Usage: &agent.MemoryData{Usage: 4096, Limit: 1 << 30}},
			CpuStats:    &agent.CpuStats{CpuUsage: &agent.CpuUsage{TotalUsage: 5_000_000}},
		},
		NetworkStats: []*agent.NetworkStats{{Name: "eth0", RxBytes: 7, TxBytes: 9}},
	}, nil
}

// Pids numbers the running processes as a guest would.
func (p *Pod) Pids(_ context.Context, id string) ([]uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var pids []uint32
	for key, pr := range p.procs {
		if key[0] == id && pr.state == virtcontainers.Running {
			pids = append(pids, uint32(len(pids)+1))
		}
	}
	return pids, nil
}

// Delete forgets a process, or a container with all its processes.
func (p *Pod) Delete(_ context.Context, id, execID string) (virtcontainers.ExitStatus, error) {
	pr, err := p.get(id, execID)
	if err != nil {
		return virtcontainers.ExitStatus{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr.cmd != nil && pr.state != virtcontainers.Stopped {
		return virtcontainers.ExitStatus{}, fmt.Errorf("process %q of %s runs: %w", execID, id, errdefs.ErrFailedPrecondition)
	}
	p.endLocked(pr, virtcontainers.ExitStatus{Code: 137, At: time.Now()})
	for key, q := range p.procs {
		if key[0] != id || (execID != "" && key[1] != execID) {
			continue
		}
		if q.tty != nil {
			_ = q.tty.Close()
		}
		delete(p.procs, key)
	}
	return pr.exit, nil
}
