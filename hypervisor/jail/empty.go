// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/ownthread"
)

// Empty unmounts and removes all files in the root of the mount namespace ns, except those in spec.Kept and the
// directory Disks. The program keeps the files that it has opened or mapped.
func Empty(ns *os.File, spec Spec) error {
	if err := inside(ns, func() error { return empty(spec) }); err != nil {
		return fmt.Errorf("empty the VMM's root: %w", err)
	}
	return nil
}

// inside calls fn on a thread that is in the mount namespace of a jail.
func inside(ns *os.File, fn func() error) error {
	done := make(chan error)
	ownthread.Go(func() {
		err := enter(ns)
		if err == nil {
			err = fn()
		}
		done <- err
	})
	return <-done
}

func enter(ns *os.File) error {
	var ours, its unix.Stat_t
	if err := unix.Stat("/", &ours); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter its mount namespace: %w", err)
	}
	var fs unix.Statfs_t
	if err := errors.Join(unix.Stat("/", &its), unix.Statfs("/", &fs)); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if its.Dev == ours.Dev || fs.Type != unix.TMPFS_MAGIC { // nothing of the host is ever removed
		return errors.New("its root is not the one that was made for it")
	}
	return nil
}

func empty(spec Spec) error {
	mounts := append([]string{"/proc", "/dev"}, spec.Trees...)
	for _, at := range slices.Backward(mounts) {
		if slices.Contains(spec.Kept, at) {
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return unsealed(func() error { return clear("/", append(slices.Clone(spec.Kept), Disks)) })
}

// unsealed calls fn while the root can be written to.
func unsealed(fn func() error) error {
	if err := remount("/", sealed&^unix.MS_RDONLY); err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	err := fn()
	if serr := remount("/", sealed); serr != nil {
		return errors.Join(err, fmt.Errorf("close the root: %w", serr))
	}
	return err
}

// clear removes a directory's contents, except the paths in keep and their parent directories. The only mounts below
// it are paths in keep, so nothing behind a mount is removed.
func clear(dir string, keep []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		if slices.Contains(keep, at) {
			continue
		}
		if slices.ContainsFunc(keep, func(k string) bool { return strings.HasPrefix(k, at+"/") }) {
			err = clear(at, keep)
		} else {
			err = os.RemoveAll(at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
