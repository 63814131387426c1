// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

type mountEntry struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// early are the mounts that all later steps need.
var early = []mountEntry{
	{"proc", "/proc", "proc", safe, ""},
	{"sysfs", "/sys", "sysfs", safe, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
}

// late is what containers need; the channel to the host does not.
var late = []mountEntry{
	{"cgroup2", CgroupRoot, "cgroup2", safe, "nsdelegate,memory_recursiveprot"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
}

// CgroupRoot is where the unified hierarchy is mounted.
const CgroupRoot = "/sys/fs/cgroup"

// newRoot is the mount point used while the root is moved.
const newRoot = "/.coco-root"

// EnterRoot moves this process from the initramfs mount onto a bind mount of it. The kernel refuses
// pivot_root(2) while the root mount has no parent, and a container runtime would have to fall back
// to chroot, which leaves the guest's root reachable below the container's. The bind mount shows
// the same files, so that it costs no memory. It does nothing on a root that is a real file system.
func EnterRoot() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return fmt.Errorf("look at the root file system: %w", err)
	}
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return nil
	}
	if err := os.Mkdir(newRoot, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"bind / to " + newRoot, func() error { return unix.Mount("/", newRoot, "", unix.MS_BIND, "") }},
		{"enter " + newRoot, func() error { return unix.Chdir(newRoot) }},
		{"move the mount over /", func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") }},
		{"chroot", func() error { return unix.Chroot(".") }},
		{"enter the new root", func() error { return unix.Chdir("/") }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("move the root: %s: %w", s.name, err)
		}
	}
	_ = os.Remove(newRoot) // an empty directory; it does no harm where it cannot be removed
	return nil
}

// MountEarly mounts /proc, /sys, /dev and /run.
func MountEarly() error { return mountAll(early) }

// MountLate mounts what containers need and hands all cgroup controllers down.
func MountLate() error {
	if err := mountAll(late); err != nil {
		return err
	}
	return delegate(CgroupRoot)
}

func mountAll(list []mountEntry) error {
	var errs []error
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			errs = append(errs, fmt.Errorf("make mount point: %w", err))
			continue
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: mounted already
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err))
		}
	}
	return errors.Join(errs...)
}

// delegate enables every controller of dir for its children, one by one: one that the kernel cannot
// give to groups must not keep back the others.
func delegate(dir string) error {
	b, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	names := strings.Fields(string(b))
	if len(names) == 0 {
		return nil
	}
	all := "+" + strings.Join(names, " +")
	if writeFile(dir+"/cgroup.subtree_control", all) == nil {
		return nil
	}
	for _, n := range names {
		_ = writeFile(dir+"/cgroup.subtree_control", "+"+n)
	}
	return nil
}

func writeFile(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s)
	return errors.Join(err, f.Close())
}
