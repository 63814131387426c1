// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package beneath

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// FileSystem is a file system to be mounted.
type FileSystem struct {
	Type, Source string
	Flags        uintptr  // MS_* of mount(2)
	Data         []string // "name" or "name=value", interpreted by the file system itself
}

// New makes a detached mount.
func (fs FileSystem) New() (*os.File, error) {
	fd, err := unix.Fsopen(fs.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file system %s: %w", fs.Type, err)
	}
	defer unix.Close(fd)
	if err := fs.configure(fd); err != nil {
		return nil, errors.Join(err, kernelSays(fd))
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, int(mountAttrs(fs.Flags))) //nolint:gosec // bits below 2^32
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("fsmount", err), kernelSays(fd))
	}
	return os.NewFile(uintptr(m), fs.Type), nil
}

// superblock are the flags that belong to the file system and not to the mount.
var superblock = []struct {
	flag uintptr
	name string
}{
	{unix.MS_RDONLY, "ro"}, {unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"}, {unix.MS_LAZYTIME, "lazytime"},
}

func (fs FileSystem) configure(fd int) error {
	if fs.Source != "" {
		if err := unix.FsconfigSetString(fd, "source", fs.Source); err != nil {
			return fmt.Errorf("source %s: %w", fs.Source, err)
		}
	}
	for _, s := range superblock {
		if fs.Flags&s.flag != 0 {
			if err := unix.FsconfigSetFlag(fd, s.name); err != nil {
				return fmt.Errorf("option %s: %w", s.name, err)
			}
		}
	}
	for _, o := range fs.Data {
		name, value, hasValue := strings.Cut(o, "=")
		var err error
		if hasValue {
			err = unix.FsconfigSetString(fd, name, value)
		} else {
			err = unix.FsconfigSetFlag(fd, name)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", o, err)
		}
	}
	return os.NewSyscallError("create", unix.FsconfigCreate(fd))
}

// kernelSays returns the message that the kernel left for a failed configuration, if any.
func kernelSays(fd int) error {
	buf := make([]byte, 1024)
	n, err := unix.Read(fd, buf)
	if err != nil || n <= 2 {
		return nil
	}
	return errors.New(strings.TrimSpace(string(buf[2:n]))) // after "e "
}

// mountAttrs translates mount flags into those of fsmount and mount_setattr.
func mountAttrs(flags uintptr) (attrs uint64) {
	for _, p := range []struct {
		flag uintptr
		attr uint64
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY},
		{unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
		{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	} {
		if flags&p.flag != 0 {
			attrs |= p.attr
		}
	}
	switch {
	case flags&unix.MS_NOATIME != 0:
		attrs |= unix.MOUNT_ATTR_NOATIME
	case flags&unix.MS_STRICTATIME != 0:
		attrs |= unix.MOUNT_ATTR_STRICTATIME
	}
	return attrs
}

// Clone makes a detached mount of a descriptor's file, with the mounts below it. The flags are added to those of
// the original.
func Clone(src *os.File, flags uintptr) (*os.File, error) {
	const tree = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH | unix.AT_RECURSIVE
	fd, err := unix.OpenTree(int(src.Fd()), "", tree)
	if err != nil {
		return nil, fmt.Errorf("bind %s: %w", src.Name(), err)
	}
	m := os.NewFile(uintptr(fd), src.Name())
	attr := unix.MountAttr{Attr_set: mountAttrs(flags)}
	if flags&(unix.MS_NOATIME|unix.MS_STRICTATIME|unix.MS_RELATIME) != 0 {
		attr.Attr_clr = unix.MOUNT_ATTR__ATIME
	}
	if attr != (unix.MountAttr{}) {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			_ = m.Close()
			return nil, fmt.Errorf("set options of bind %s: %w", src.Name(), err)
		}
	}
	return m, nil
}

// Attach puts a new mount on a directory or file. The mount's descriptor stays one of the mount.
func Attach(mount, on *os.File) error {
	const empty = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(mount.Fd()), "", int(on.Fd()), "", empty); err != nil {
		return fmt.Errorf("mount on %s: %w", on.Name(), err)
	}
	return nil
}

// Detach takes away the mount that a descriptor is the root of, wherever its directory is by now, and
// closes the descriptor. Where it is in use it vanishes when it no longer is. One that is not mounted any
// more is fine.
func Detach(mount *os.File) error {
	err := unix.Unmount(Proc(mount), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", mount.Name(), err)
	}
	return mount.Close()
}
