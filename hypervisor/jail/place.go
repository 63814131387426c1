// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disks is the directory where Place shows files, for a program that opens its disks by name.
const Disks = "/disks"

// Place shows an open file under a name in Disks of the root that the mount namespace ns has, and returns its path
// there. The file must have a name, too: the kernel cannot mount one that was removed. The lender makes the file
// accessible to the VMM's user; without a lender, access is left to the VMM's capabilities.
func Place(ns *os.File, l *Lender, file *os.File, name string, readOnly bool) (string, error) {
	tree, inner, err := l.toPlace(file, readOnly)
	if err != nil {
		return "", fmt.Errorf("show %s to the VMM: %w", file.Name(), err)
	}
	defer unix.Close(tree)
	at := filepath.Join(Disks, name)
	err = inside(ns, func() error {
		return unsealed(func() error {
			err := place(tree, at)
			if err != nil {
				_ = os.Remove(at) // it may not be there
			}
			return err
		})
	})
	if err != nil {
		return "", fmt.Errorf("show %s to the VMM: %w", file.Name(), err)
	}
	return filepath.Join(at, inner), nil
}

// toPlace makes the mount that Place attaches. A file that the user may open anyway, and that cannot be lent, is
// mounted as it is.
func (l *Lender) toPlace(file *os.File, readOnly bool) (fd int, name string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return -1, "", os.NewSyscallError("fstat", err)
	}
	if l != nil {
		fd, name, err = l.tree(file, st, readOnly)
		if open, _ := openToAll(st.Mode, readOnly); err == nil || !open {
			return fd, name, err
		}
	}
	fd, err = unix.OpenTree(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, "", os.NewSyscallError("open_tree", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(fd) // not attached
		return -1, "", os.NewSyscallError("mount_setattr", err)
	}
	return fd, "", nil
}

// Displace takes away what Place has shown under a name. The program keeps it if it is open.
func Displace(ns *os.File, name string) error {
	at := filepath.Join(Disks, name)
	err := inside(ns, func() error {
		return errors.Join(unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW),
			unsealed(func() error { return os.Remove(at) }))
	})
	if err != nil {
		return fmt.Errorf("take %s from the VMM: %w", at, err)
	}
	return nil
}
