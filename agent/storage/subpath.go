// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
)

const maxSubPath = 4095 // PATH_MAX without the final NUL

// takeSubPath finds the option among a storage's driver options.
func takeSubPath(options []string) (string, error) {
	sub := ""
	for _, o := range options {
		v, ok := strings.CutPrefix(o, contract.OptionSubPath)
		if !ok {
			continue
		}
		if sub != "" || v == "" || len(v) > maxSubPath || path.IsAbs(v) || path.Clean(v) != v || v == "." || v == ".." ||
			strings.HasPrefix(v, "../") || strings.ContainsRune(v, 0) {
			return "", invalid(fmt.Errorf("sub path %.200q is not one plain relative path", v))
		}
		sub = v
	}
	return sub, nil
}

// inVolume is the way that a path in a volume is opened. Containers write to volumes: a symbolic link
// may be there and is followed, but not out of the volume.
func inVolume(flags uint64) *unix.OpenHow {
	return &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
}

// openSubPath opens a path within a volume, as O_PATH. Directories that are missing are made with the
// volume's mode; their group is the volume's if that is set so.
func openSubPath(volume *os.File, sub string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(volume.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	root := int(volume.Fd())
	fd, err := unix.Openat2(root, sub, inVolume(unix.O_PATH))
	if errors.Is(err, unix.ENOENT) {
		if err := makeInVolume(root, sub, st.Mode&0o7777); err != nil {
			return nil, fmt.Errorf("make sub path %s: %w", sub, err)
		}
		fd, err = unix.Openat2(root, sub, inVolume(unix.O_PATH))
	}
	if errors.Is(err, unix.EXDEV) {
		return nil, invalid(fmt.Errorf("sub path %s leads out of its volume", sub))
	}
	if err != nil {
		return nil, fmt.Errorf("sub path %s: %w", sub, err)
	}
	return os.NewFile(uintptr(fd), sub), nil
}

// makeInVolume makes the directories of a path that are missing.
func makeInVolume(root int, sub string, mode uint32) error {
	for i := range len(sub) + 1 {
		if i < len(sub) && sub[i] != '/' {
			continue
		}
		dir, err := unix.Openat2(root, path.Dir(sub[:i]), inVolume(unix.O_PATH|unix.O_DIRECTORY))
		if err != nil {
			return err
		}
		err = makeOne(dir, path.Base(sub[:i]), mode)
		unix.Close(dir)
		if err != nil {
			return err
		}
	}
	return nil
}

func makeOne(dir int, name string, mode uint32) error {
	err := unix.Mkdirat(dir, name, mode)
	if errors.Is(err, unix.EEXIST) {
		return nil // of any type: the path is opened again
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, mode) // the umask has taken bits away
}

// atFile makes a file as the mount point, puts the mount there, and records the undo.
func (m *Manager) atFile(point string, mt *mounted, mount *os.File) error {
	dir, made, err := m.dir.Make(path.Dir(point), 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	if made {
		mt.undo.Push("remove "+path.Dir(point), func(context.Context) error { return m.dir.RemoveDir(path.Dir(point)) })
	}
	fd, err := unix.Openat2(int(dir.Fd()), path.Base(point), &unix.OpenHow{
		Flags: unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC, Mode: 0o600, Resolve: unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return &os.PathError{Op: "create", Path: point, Err: err}
	}
	f := os.NewFile(uintptr(fd), point)
	defer f.Close()
	mt.undo.Push("remove "+point, func(context.Context) error { return m.dir.RemoveFile(point) })
	return attach(mt, mount, f)
}
