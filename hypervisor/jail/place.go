// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disks is the directory where Place shows files, for a program that opens its disks by name.
const Disks = "/disks"

// Place shows an open file under a name in Disks of the root that the mount namespace ns has. The file must have a
// name, too: the kernel cannot mount one that was removed.
func Place(ns, file *os.File, name string, readOnly bool) error {
	tree, err := unix.OpenTree(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &fs.PathError{Op: "open_tree", Path: file.Name(), Err: err}
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return &fs.PathError{Op: "mount_setattr", Path: file.Name(), Err: err}
	}
	err = inside(ns, func() error {
		return unsealed(func() error {
			at := filepath.Join(Disks, name)
			err := place(tree, at)
			if err != nil {
				_ = os.Remove(at) // it may not be there
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("show %s to the VMM: %w", file.Name(), err)
	}
	return nil
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
