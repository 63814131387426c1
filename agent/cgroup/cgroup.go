// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgroup works on control groups of the unified hierarchy (cgroup v2) by their files:
// statistics, limits, freezing, killing, removal and out-of-memory events. Groups are made by the
// OCI runtime. File formats are those of the kernel's Documentation/admin-guide/cgroup-v2.rst.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is one control group.
type Group struct{ dir string }

// At returns the group with the given path below the hierarchy's mount point.
func At(root, path string) Group { return Group{filepath.Join(root, filepath.Join("/", path))} }

// Dir is the group's directory.
func (g Group) Dir() string { return g.dir }

func (g Group) file(name string) string { return filepath.Join(g.dir, name) }

func (g Group) write(name, value string) error {
	f, err := os.OpenFile(g.file(name), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cgroup file: %w", err)
	}
	if _, err = f.WriteString(value); err != nil {
		err = fmt.Errorf("write %q to cgroup file: %w", value, err)
	}
	return errors.Join(err, f.Close())
}

// Kill kills every process of the group and of the groups below it, atomically. A group that is
// gone has none.
func (g Group) Kill() error {
	if err := g.write("cgroup.kill", "1"); err != nil && !gone(err) {
		return err
	}
	return nil
}

func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Freeze stops or thaws every process of the group and returns when the kernel has done so.
func (g Group) Freeze(ctx context.Context, on bool) error {
	value, want := "0", uint64(0)
	if on {
		value, want = "1", 1
	}
	if err := g.write("cgroup.freeze", value); err != nil {
		return err
	}
	return g.waitEvent(ctx, "frozen", want)
}

// Remove deletes the group and the groups below it, once the last process has left.
func (g Group) Remove(ctx context.Context) error {
	if err := g.waitEvent(ctx, "populated", 0); err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	return removeTree(g.dir)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !gone(err) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// waitEvent waits until a key of cgroup.events has a value. The kernel announces changes of the
// file with POLLPRI.
func (g Group) waitEvent(ctx context.Context, key string, want uint64) error {
	f, err := os.Open(g.file("cgroup.events"))
	if err != nil {
		return fmt.Errorf("cgroup file: %w", err)
	}
	defer f.Close()
	wake, err := newWaker(ctx)
	if err != nil {
		return err
	}
	defer wake.close()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Pread(int(f.Fd()), buf, 0)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if v, ok := parseKeys(string(buf[:n]))[key]; ok && v == want {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for %s=%d of cgroup %s: %w", key, want, g.dir, err)
		}
		fds := []unix.PollFd{
			{Fd: int32(f.Fd()), Events: unix.POLLPRI}, //nolint:gosec // descriptors
			{Fd: int32(wake.fd), Events: unix.POLLIN}, //nolint:gosec // likewise
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll %s: %w", f.Name(), err)
		}
	}
}

// waker makes a poll return when a context ends.
type waker struct {
	fd   int
	stop func() bool
	done chan struct{}
}

func newWaker(ctx context.Context) (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	w := &waker{fd: fd, done: make(chan struct{})}
	w.stop = context.AfterFunc(ctx, func() {
		defer close(w.done)
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	return w, nil
}

func (w *waker) close() {
	if !w.stop() {
		<-w.done
	}
	unix.Close(w.fd)
}

// readSmall reads a whole cgroup file; these are a page or a few.
func readSmall(name string) (string, error) {
	b, err := os.ReadFile(name)
	return string(b), err
}

// parseKeys reads a flat keyed file: "key value" per line. Lines that are not so are skipped.
func parseKeys(s string) map[string]uint64 {
	m := make(map[string]uint64)
	for line := range strings.Lines(s) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m
}

// parseValue reads a single value; "max" is the largest number.
func parseValue(s string) (uint64, error) {
	s = strings.TrimSpace(s)
	if s == "max" {
		return ^uint64(0), nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// usec converts the kernel's microseconds to the protocol's nanoseconds.
func usec(n uint64) uint64 { return n * uint64(time.Microsecond) }
