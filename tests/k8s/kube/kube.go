// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kube brings up Kubernetes on one machine for tests: a containerd with CRI and our drop-in of deploy/, a
// kubelet on it, standing alone or with a control plane, and the upstream e2e suite against that.
//
// All files of a node live below one directory: roots, states, sockets, logs, process ids. Its bridge, its
// subnet and its cgroups are its own too, so that it does not meet another node on the same machine: a kubelet
// kills processes that it does not know below its cgroup root.
package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// Version is the Kubernetes that tests/setup.sh builds.
const Version = "1.37"

// Bin is the directory of the binaries that tests/setup.sh built.
func Bin() string { return filepath.Join(harness.Cache(), "k8s-"+Version, "bin") }

// binary returns the path of a program that the set-up step of that name builds.
func binary(name, step string) (string, error) {
	p := filepath.Join(Bin(), name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("%s: %w: tests/setup.sh %s", name, harness.ErrAbsent, step)
	}
	return p, nil
}

// Process is a daemon of the node. It is found again by its pid file, so that one command can start it and
// another one stop it.
type Process struct {
	Name    string
	dir     string
	exited  chan struct{} // nil for a process that another command started
	PID     int
	Logfile string
}

// startProcess runs a daemon in a session of its own, with its output in dir/NAME.log and its pid in dir/NAME.pid.
func startProcess(dir, name string, env []string, argv ...string) (*Process, error) {
	p := &Process{Name: name, dir: dir, Logfile: filepath.Join(dir, name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.Logfile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = log, log, dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.PID = cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, os.WriteFile(p.pidfile(), []byte(strconv.Itoa(p.PID)), 0o600)
}

func (p *Process) pidfile() string { return filepath.Join(p.dir, p.Name+".pid") }

// processIn finds a daemon by its pid file; nil if there is none or it does not run any more.
func processIn(dir, name string) *Process {
	p := &Process{Name: name, dir: dir, Logfile: filepath.Join(dir, name+".log")}
	data, err := os.ReadFile(p.pidfile())
	if err != nil {
		return nil
	}
	p.PID, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	if p.PID <= 1 || !p.alive() {
		_ = os.Remove(p.pidfile())
		return nil
	}
	return p
}

// alive says whether the process runs and is the one of the pid file: its working directory is the node's.
func (p *Process) alive() bool {
	if p.exited != nil {
		select {
		case <-p.exited:
			return false
		default:
			return true
		}
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.PID))
	return err == nil && cwd == p.dir
}

// Kill ends the process at once.
func (p *Process) Kill() { p.end(syscall.SIGKILL, 10*time.Second) }

// Stop ends the process with SIGTERM, and insists after 20 seconds.
func (p *Process) Stop() error {
	if p.end(syscall.SIGTERM, 20*time.Second) {
		return nil
	}
	p.Kill()
	return fmt.Errorf("%s ignored SIGTERM", p.Name)
}

func (p *Process) end(sig syscall.Signal, patience time.Duration) bool {
	if p.alive() {
		_ = syscall.Kill(p.PID, sig)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	gone := await(ctx, 50*time.Millisecond, func() bool { return !p.alive() })
	if gone {
		_ = os.Remove(p.pidfile())
	}
	return gone
}

// await asks until the answer is yes; no when the context ends before. For what has no event to wait for.
func await(ctx context.Context, every time.Duration, ok func() bool) bool {
	for !ok() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(every):
		}
	}
	return true
}

// ready waits until ok says nil. If the process ends before, the error shows the end of its log.
func (p *Process) ready(ctx context.Context, patience time.Duration, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	await(ctx, 100*time.Millisecond, func() bool {
		last = ok()
		return last == nil || !p.alive()
	})
	switch {
	case last == nil:
		return nil
	case !p.alive():
		return fmt.Errorf("%s ended at its start; the end of %s:\n%s", p.Name, p.Logfile, tail(p.Logfile, 10))
	default:
		return errors.Join(fmt.Errorf("%s is not ready after %v; see %s", p.Name, patience, p.Logfile), last)
	}
}

func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// NotOfPods says of a trace that no living or dead pod of this node owes its removal: cgroups of others, and the shm
// mount of a sandbox that ended by itself, which containerd 2 keeps until the kubelet's garbage collection removes the
// sandbox, a minute later, under runc too.
func (n *Node) NotOfPods(trace string) bool {
	return strings.HasPrefix(trace, "cgroup ") && !strings.Contains(trace, n.CgroupRoot()+"/") ||
		strings.HasPrefix(trace, "mount "+n.Dir) && strings.Contains(trace, "/sandboxes/") && strings.HasSuffix(trace, "/shm")
}
