// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package standin is the process of the host that stands for a process of the guest. The engine has its pid, waits for
// it as the subreaper of coco-oci, and takes its exit status; so it lives as long as the process in the guest and exits
// with the same status.
//
// It relays the standard streams, which it inherits from the engine or from a terminal that is made here, to the FIFOs
// of the shim. It passes signals on, and the size of the terminal. When it is killed, its connection with the shim
// ends, and the shim kills the process in the guest. When the shim dies, the VM does, and it exits with 137.
//
// Start begins one, Main is its program.
package standin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/shim/bundle"
)

// Arg is the first argument of the program.
const Arg = "stand-in"

// readyFD is the descriptor on which the stand-in says that it is ready, or why not.
const (
	readyFD   = 3
	readyWord = "ready"
)

// Process is a process of the guest and the places of its streams.
type Process struct {
	Address string // of the shim
	ID      string // of the container
	Exec    string // "" for the container's first process
	Dir     string // where its FIFOs are

	Terminal bool
	// Console is the socket that takes the terminal's master. Without it a terminal is the caller's own.
	Console string
	// Netns is the path of the network namespace that the pod has, or "". The stand-in is in it, since engines look for
	// that of a container by its pid.
	Netns string
}

// Places are the paths of the streams as the shim gets them; "" for none.
type Places struct{ Stdin, Stdout, Stderr string }

// places names the FIFOs.
func (p Process) places() Places {
	name := p.Exec
	if name == "" {
		name = "init"
	}
	base := filepath.Join(p.Dir, "io-"+name)
	return Places{base + ".0", base + ".1", base + ".2"}
}

// Places makes the FIFOs. There is none for an input that is /dev/null, nor for the errors of a terminal.
// After an error none is left.
func (p Process) Places() (Places, error) {
	s := p.places()
	if !p.Terminal && isNull(0) {
		s.Stdin = ""
	}
	if p.Terminal {
		s.Stderr = ""
	}
	var made []string
	for _, path := range []string{s.Stdin, s.Stdout, s.Stderr} {
		if path == "" {
			continue
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			errs := []error{fmt.Errorf("make the FIFO %s: %w", path, err)}
			for _, m := range made {
				errs = append(errs, os.Remove(m))
			}
			return Places{}, errors.Join(errs...)
		}
		made = append(made, path)
	}
	return s, nil
}

// Remove removes the FIFOs.
func (p Process) Remove() error {
	at := p.places()
	var errs []error
	for _, path := range []string{at.Stdin, at.Stdout, at.Stderr} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func isNull(fd int) bool {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return errors.Is(err, unix.EBADF) || err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// Start begins the stand-in of a process that the shim knows and that has not been started. It returns when the
// stand-in waits for the process. The caller waits for cmd, or leaves it to its subreaper.
func Start(p Process) (cmd *exec.Cmd, id bundle.Process, err error) {
	ready, childReady, err := os.Pipe()
	if err != nil {
		return nil, id, fmt.Errorf("make a pipe for the stand-in: %w", err)
	}
	defer func() { _ = ready.Close() }() // only read from
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	if p.Console != "" {
		tty, err := console(p.Console)
		if err != nil {
			_ = childReady.Close() // no child was started
			return nil, id, err
		}
		defer func() { _ = tty.Close() }() // the stand-in has its own
		files = []*os.File{tty, tty, tty}
	}
	cmd = p.command(files, childReady)
	err = startIn(cmd, p.Netns)
	_ = childReady.Close() // the stand-in has its own
	if err != nil {
		return nil, id, fmt.Errorf("start the stand-in: %w", err)
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill() // may have ended by itself
			_ = cmd.Wait()         // its status says less than err
		}
	}()
	said, err := io.ReadAll(io.LimitReader(ready, 4<<10))
	if err == nil && string(said) != readyWord {
		err = fmt.Errorf("the stand-in of process %q in container %s ended at once: %s", p.Exec, p.ID, said)
	}
	if err != nil {
		return nil, id, err
	}
	id, err = bundle.ProcessOf(cmd.Process.Pid)
	if err != nil {
		return nil, id, fmt.Errorf("identify the stand-in: %w", err)
	}
	return cmd, id, nil
}

func (p Process) command(files []*os.File, ready *os.File) *exec.Cmd {
	kind := "pipes"
	if p.Terminal {
		kind = "terminal"
	}
	cmd := exec.Command("/proc/self/exe", Arg, p.Address, p.ID, p.Exec, p.Dir, kind) // it outlives the call
	cmd.Args[0] = "coco-oci"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.ExtraFiles = []*os.File{readyFD - 3: ready}
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=20", "GODEBUG=containermaxprocs=0"}
	// With the caller's own terminal it has to stay in the session of that.
	own := !p.Terminal || p.Console != ""
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: own, Setctty: p.Console != "", Ctty: 0,
		// Engines look into the namespaces of a container's pid, as podman top does. They must not find the host's.
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
	}
	return cmd
}

// startIn starts the command in a network namespace.
func startIn(cmd *exec.Cmd, netns string) error {
	if netns == "" {
		return cmd.Start()
	}
	ns, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }() // only read
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function, in its namespace
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("enter the network namespace %s: %w", netns, err)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// parse reads the arguments that command writes.
func parse(args []string) (Process, error) {
	if len(args) != 5 {
		return Process{}, fmt.Errorf("a stand-in is started by coco-oci itself, with five arguments: %q", args)
	}
	return Process{
		Address: args[0], ID: args[1], Exec: args[2], Dir: args[3], Terminal: args[4] == "terminal",
	}, nil
}
