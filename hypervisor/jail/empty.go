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

// Empty takes away everything from the root that the mount namespace ns has, but what is to be kept. What
// the program has open or mapped stays its own.
func Empty(ns *os.File, spec Spec) error {
	done := make(chan error)
	ownthread.Go(func() { done <- empty(ns, spec) })
	if err := <-done; err != nil {
		return fmt.Errorf("empty the VMM's root: %w", err)
	}
	return nil
}

func empty(ns *os.File, spec Spec) error {
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
	mounts := append([]string{"/proc", "/dev"}, spec.Trees...)
	for _, at := range slices.Backward(mounts) {
		if slices.Contains(spec.Kept, at) {
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	if err := remount("/", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	if err := clear("/", spec.Kept); err != nil {
		return err
	}
	if err := remount("/", sealed); err != nil {
		return fmt.Errorf("close the root: %w", err)
	}
	return nil
}

// clear removes what is in a directory but what is kept and what that is in. Nothing is mounted there but
// what is kept.
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
