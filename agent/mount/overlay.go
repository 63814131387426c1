// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const maxLower = 500 // overlayfs's own limit

// mountOverlay mounts layers on top of each other. The new mount API takes one layer at a time, so
// that their number is not bounded by the page that mount(2) has for options.
func (m *Manager) mountOverlay(point string, mt *mounted, opts options) error {
	lower, upper, work, err := m.overlayDirs(&opts)
	if err != nil {
		return err
	}
	for _, o := range opts.data {
		switch o {
		case "volatile", "index=off", "xino=off", "metacopy=off", "redirect_dir=off", "redirect_dir=nofollow", "userxattr":
		default:
			return invalid(fmt.Errorf("unknown option %.100q for overlay", o))
		}
	}
	for _, o := range mt.storage.GetDriverOptions() {
		if dir, ok := strings.CutPrefix(o, createDirectory); ok {
			if err := m.createFor(mt, dir, lower[0], upper); err != nil {
				return fmt.Errorf("create directory for overlay: %w", err)
			}
		}
	}
	return m.at(point, mt, func(target string) error {
		fd, err := newOverlay(lower, upper, work, opts)
		if err != nil {
			return fmt.Errorf("mount overlay of %d layers: %w", len(lower), err)
		}
		defer unix.Close(fd)
		err = unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
		return os.NewSyscallError("move_mount", err)
	})
}

// overlayDirs checks the directories of an overlay.
func (m *Manager) overlayDirs(opts *options) (lower []string, upper, work string, err error) {
	l, ok, err := opts.take("lowerdir")
	if err == nil && (!ok || l == "") {
		err = errors.New("overlay without lowerdir")
	}
	if err == nil {
		upper, _, err = opts.take("upperdir")
	}
	if err == nil {
		work, _, err = opts.take("workdir")
	}
	if err == nil && (upper == "") != (work == "") {
		err = errors.New("overlay with only one of upperdir and workdir")
	}
	if err != nil {
		return nil, "", "", invalid(err)
	}
	if strings.Count(l, ":") >= maxLower {
		return nil, "", "", invalid(fmt.Errorf("overlay of more than %d layers", maxLower))
	}
	for d := range strings.SplitSeq(l, ":") {
		c, err := m.clean(d)
		if err != nil {
			return nil, "", "", fmt.Errorf("lowerdir: %w", err)
		}
		lower = append(lower, c)
	}
	if upper == "" {
		return lower, "", "", nil
	}
	if upper, err = m.clean(upper); err != nil {
		return nil, "", "", fmt.Errorf("upperdir: %w", err)
	}
	if work, err = m.clean(work); err != nil {
		return nil, "", "", fmt.Errorf("workdir: %w", err)
	}
	return lower, upper, work, nil
}

// createFor makes an upper or work directory. A new upper directory takes mode and owner of the top
// layer's root: the overlay shows those as its own.
func (m *Manager) createFor(mt *mounted, path, topLayer, upper string) error {
	path, err := m.clean(path)
	if err != nil {
		return err
	}
	dir, made, err := m.makeDir(path, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	if !made {
		return nil
	}
	mt.undo.Push("remove "+path, func(context.Context) error { return m.removeDir(path) })
	if path != upper {
		return nil
	}
	top, err := m.open(topLayer)
	if err != nil {
		return err
	}
	defer top.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := unix.Chown(procPath(dir), int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("chown", err)
	}
	return os.NewSyscallError("chmod", unix.Chmod(procPath(dir), st.Mode&0o7777))
}

// newOverlay makes a detached overlay mount and returns its descriptor.
func newOverlay(lower []string, upper, work string, opts options) (fd int, err error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, key, value); err != nil {
				err = fmt.Errorf("%s=%s: %w", key, value, err)
			}
		}
	}
	for _, l := range lower {
		set("lowerdir+", l)
	}
	if upper != "" {
		set("upperdir", upper)
		set("workdir", work)
	}
	for _, o := range opts.data {
		name, value, hasValue := strings.Cut(o, "=")
		if hasValue {
			set(name, value)
		} else if err == nil {
			err = unix.FsconfigSetFlag(fs, name)
		}
	}
	if err == nil {
		err = os.NewSyscallError("create", unix.FsconfigCreate(fs))
	}
	if err != nil {
		return -1, errors.Join(err, kernelSays(fs))
	}
	fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, mountAttrs(opts.flags))
	return fd, os.NewSyscallError("fsmount", err)
}

// kernelSays returns the message that the kernel left for a failed configuration, if any.
func kernelSays(fs int) error {
	buf := make([]byte, 1024)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 2 {
		return nil
	}
	return errors.New(strings.TrimSpace(string(buf[2:n]))) // after "e "
}

// mountAttrs translates mount flags into those of fsmount.
func mountAttrs(flags uintptr) (attrs int) {
	for _, p := range []struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY},
		{unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
		{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	} {
		if flags&p.flag != 0 {
			attrs |= p.attr
		}
	}
	return attrs
}
