// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgroups places the VMM in the control groups that an OCI specification names, on hosts
// with cgroup v2, v1 or both.
//
// It makes directories and moves the VMM and the shim into leaves of their own. The VM's size is the limit of memory
// and processors; the leaf limits only what a VMM never needs: more devices and processes. It asks no service manager:
// a path in systemd's notation becomes the directory that systemd would use. Plan is pure, Apply and Remove act.
package cgroups

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Root is where cgroups are mounted.
const Root = "/sys/fs/cgroup"

// Hierarchy is one mounted cgroup tree.
type Hierarchy struct {
	Mount   string // mount point
	V2      bool
	Options string // of v1: the controllers are among them
}

// Hierarchies lists the trees of this host. Named v1 trees without controllers (systemd's own) are
// left to their owner.
func Hierarchies() ([]Hierarchy, error) {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2" || m.Root != "/" && !strings.HasPrefix(m.Mountpoint, Root), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var out []Hierarchy
	for _, m := range infos {
		named := m.FSType == "cgroup" && strings.Contains(m.VFSOptions, "name=")
		if named || m.Mountpoint != Root && !strings.HasPrefix(m.Mountpoint, Root+"/") {
			continue
		}
		out = append(out, Hierarchy{Mount: m.Mountpoint, V2: m.FSType == "cgroup2", Options: m.VFSOptions})
	}
	return out, nil
}

// Plan lists the directories, parents first, that a process is put in: a leaf, if that is not empty, of the group of
// the given OCI path. The last directory of each hierarchy is in leaves.
func Plan(hs []Hierarchy, ociPath, leaf string) (dirs, leaves []string, err error) {
	rel, err := relative(ociPath)
	if err != nil || rel == "" {
		return nil, nil, err
	}
	rel = path.Join(rel, leaf)
	for _, h := range hs {
		dir := h.Mount
		for part := range strings.SplitSeq(rel, "/") {
			dir = filepath.Join(dir, part)
			dirs = append(dirs, dir)
		}
		leaves = append(leaves, dir)
	}
	return dirs, leaves, nil
}

// relative turns linux.cgroupsPath into a path below the mount points. systemd's notation is
// slice:prefix:name; the slice a-b.slice lies in a.slice.
func relative(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	if strings.ContainsAny(p, "\x00\n") {
		return "", fmt.Errorf("linux.cgroupsPath %q holds a control character", p)
	}
	if parts := strings.Split(p, ":"); len(parts) == 3 && !strings.Contains(p, "/") {
		slice, prefix, name := parts[0], parts[1], parts[2]
		if !strings.HasSuffix(name, ".slice") {
			name = prefix + "-" + name + ".scope"
			if prefix == "" {
				name = parts[2] + ".scope"
			}
		}
		return path.Join(expandSlice(slice), name), nil
	}
	clean := path.Clean("/" + p)
	if clean == "/" {
		return "", fmt.Errorf("linux.cgroupsPath %q is the root cgroup", p)
	}
	return clean[1:], nil
}

func expandSlice(slice string) string {
	if slice == "" {
		slice = "system.slice"
	}
	if slice == "-.slice" {
		return ""
	}
	name := strings.TrimSuffix(slice, ".slice")
	var out, prefix string
	for part := range strings.SplitSeq(name, "-") {
		prefix += part
		out = path.Join(out, prefix+".slice")
		prefix += "-"
	}
	return out
}

// Apply makes the directories and moves the process into the leaves. It calls made before it makes a directory, so that
// the caller can record it first.
func Apply(dirs, leaves []string, pid int, made func(dir string) error) error {
	for _, d := range dirs {
		if _, err := os.Stat(d); err == nil {
			continue
		}
		if err := made(d); err != nil {
			return err
		}
	}
	for _, leaf := range leaves {
		if err := join(leaf, pid); err != nil {
			return err
		}
	}
	return nil
}

// join makes leaf and moves pid into it. A parent that another pod removes because it was empty
// in between is made again.
func join(leaf string, pid int) error {
	var err error
	for range 5 {
		if err = os.MkdirAll(leaf, 0o755); err != nil { // the mode of every cgroup
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return fmt.Errorf("make cgroup %s: %w", leaf, err)
		}
		if err = inheritCpuset(leaf); err != nil {
			return err
		}
		if err = enter(leaf, pid); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// inheritCpuset fills the empty sets of new v1 cpuset groups from their parents, top down: a process
// cannot enter a group that has no CPU.
func inheritCpuset(leaf string) error {
	if _, err := os.Stat(filepath.Join(leaf, "cpuset.cpus")); err != nil {
		return nil // not a v1 cpuset
	}
	if _, err := os.Stat(filepath.Join(leaf, "cgroup.controllers")); err == nil {
		return nil // v2 inherits by itself
	}
	var chain []string
	for d := leaf; ; d = filepath.Dir(d) {
		if cpus, err := os.ReadFile(filepath.Join(d, "cpuset.cpus")); err != nil || len(bytes.TrimSpace(cpus)) > 0 {
			break
		}
		chain = append(chain, d)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			v, err := os.ReadFile(filepath.Join(filepath.Dir(chain[i]), f))
			if err != nil {
				return fmt.Errorf("inherit %s: %w", f, err)
			}
			if err := os.WriteFile(filepath.Join(chain[i], f), bytes.TrimSpace(v), 0); err != nil {
				return fmt.Errorf("inherit %s of %s: %w", f, chain[i], err)
			}
		}
	}
	return nil
}

// removeRetry is how long a group may stay busy after its last process was reaped: v1 has no event
// for that.
const removeRetry = 20 * time.Millisecond

// Remove deletes the directories, children first. One that is gone is fine; a parent that others use
// meanwhile stays, and so does it when children of others are in it. leaves must go.
func Remove(ctx context.Context, dirs []string) error {
	var errs []error
	for i := len(dirs) - 1; i >= 0; i-- {
		leaf := i == len(dirs)-1 || !strings.HasPrefix(dirs[i+1], dirs[i]+"/")
		if err := remove(ctx, dirs[i], leaf); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func remove(ctx context.Context, dir string, must bool) error {
	for {
		err := unix.Rmdir(dir)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !must && (errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY)):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		t := time.NewTimer(removeRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("remove cgroup %s: still in use: %w", dir, context.Cause(ctx))
		}
	}
}
