// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rlimit decides the resource limits of processes whose specification names none. Under runc
// they are containerd's, by inheritance; a process in a VM would inherit those that the guest's kernel
// derives from its small memory.
package rlimit

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const unlimited = ^uint64(0)

// resources are the limits that Linux has. Those that are plain are without limit in a guest.
var resources = []struct {
	name   string
	number int
	plain  bool
}{
	{"RLIMIT_AS", unix.RLIMIT_AS, true},
	{"RLIMIT_CORE", unix.RLIMIT_CORE, false},
	{"RLIMIT_CPU", unix.RLIMIT_CPU, true},
	{"RLIMIT_DATA", unix.RLIMIT_DATA, true},
	{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE, true},
	{"RLIMIT_LOCKS", unix.RLIMIT_LOCKS, true},
	{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK, false},
	{"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE, false},
	{"RLIMIT_NICE", unix.RLIMIT_NICE, false},
	{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, false},
	{"RLIMIT_NPROC", unix.RLIMIT_NPROC, false},
	{"RLIMIT_RSS", unix.RLIMIT_RSS, true},
	{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO, false},
	{"RLIMIT_RTTIME", unix.RLIMIT_RTTIME, true},
	{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING, false},
	{"RLIMIT_STACK", unix.RLIMIT_STACK, false},
}

// Env is the environment variable by which the program that containerd starts tells the process that serves what
// Original found.
const Env = "COCO_SOFT_NOFILE"

// Original returns the soft limit of open files that this process was started with, and sets it again. Go's
// runtime raises it at the start and gives programs that it executes the old one. There is no asking for that; but
// an execve(2) that fails has set it already. Call it where few files are open.
func Original() (uint64, error) {
	if err := syscall.Exec("/", []string{"/"}, nil); err == nil { // a directory
		return 0, errors.New("a directory was executed")
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	return l.Cur, nil
}

// core is containerd's limit of core files, once this process has a lower one.
var core *unix.Rlimit

// ForbidCore keeps this process from leaving core files. Host still returns containerd's limit. Call it once,
// before anything calls Host.
func ForbidCore() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		return fmt.Errorf("read RLIMIT_CORE: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	core = &l
	return nil
}

// Host returns the limits that containerd gives what it starts. files is what Env holds, "" where nobody has
// asked Original.
func Host(files string) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, r := range resources {
		var l unix.Rlimit
		if err := unix.Getrlimit(r.number, &l); err != nil {
			return nil, fmt.Errorf("read %s: %w", r.name, err)
		}
		if r.number == unix.RLIMIT_CORE && core != nil {
			l = *core
		}
		if n, err := strconv.ParseUint(files, 10, 64); err == nil && r.number == unix.RLIMIT_NOFILE {
			l.Cur = min(n, l.Max)
		}
		if r.plain && l.Cur == unlimited && l.Max == unlimited {
			continue
		}
		out = append(out, specs.POSIXRlimit{Type: r.name, Soft: l.Cur, Hard: l.Max})
	}
	return out, nil
}

// Limits are those of a process, in the order of resources.
type Limits []unix.Rlimit

// Mine returns this process's limits.
func Mine() (Limits, error) {
	out := make(Limits, len(resources))
	for i, r := range resources {
		if err := unix.Getrlimit(r.number, &out[i]); err != nil {
			return nil, fmt.Errorf("read %s: %w", r.name, err)
		}
	}
	return out, nil
}

// Take gives this process the limits of another one, but for core files, which stay forbidden. It is for a process that
// began under another parent than containerd. Host returns the limits of the other process then.
func Take(l Limits) error {
	if len(l) != len(resources) {
		return fmt.Errorf("%d limits came, not %d", len(l), len(resources))
	}
	for i, r := range resources {
		if r.number == unix.RLIMIT_CORE {
			core = &l[i]
			continue
		}
		if r.number == unix.RLIMIT_NOFILE { // as Go's runtime does at the start
			l[i].Cur = l[i].Max
		}
		if err := unix.Setrlimit(r.number, &l[i]); err != nil {
			return fmt.Errorf("set %s: %w", r.name, err)
		}
	}
	return nil
}
