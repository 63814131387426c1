// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netns makes, enters and deletes network namespaces that a path names.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// New makes a network namespace that lives as long as path, an empty file on which it is
// mounted. path must not exist; its directory must. On error nothing is left.
func New(path string) (err error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make network namespace: %s exists: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := f.Close(); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		if err := unix.Mount(ofThread, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace on %s: %w", path, err)
		}
		return nil
	})
}

// Delete ends what New made. The kernel frees the namespace when the last process and
// descriptor have left it. Deleting one that is gone is fine.
func Delete(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	// EINVAL: not a mount point, because an earlier delete came this far.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace: %w", err)
	}
	return nil
}

// In runs fn on a thread inside the network namespace at path (for example /proc/PID/ns/net) and
// returns its error. Processes that fn starts are born in the namespace. fn must not start
// goroutines that count on it.
func In(path string, fn func() error) error {
	ns, err := Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return Enter(ns, fn)
}

const ofThread = "/proc/thread-self/ns/net"

// Open opens the network namespace at path. Another file is refused.
func Open(path string) (*os.File, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: it is not a namespace: %w", path,
			errdefs.ErrInvalidArgument), f.Close())
	}
	return f, nil
}

// Enter does what In does, in a namespace that is open.
func Enter(ns *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return fn()
	})
}

// onThread runs fn, which may change the thread's network namespace, on a thread of its own. The
// thread goes back to where it was and is used again; when it cannot go back it ends instead, so that
// no other goroutine ever runs in the wrong namespace. (It does not end without need because processes
// that fn started may have it as their parent for PR_SET_PDEATHSIG.)
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ofThread)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, home.Close())
	}()
	return <-done
}
