// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const maxPathLen = 4095

// clean checks that a path from the host is absolute, in its simplest form and strictly below the
// root.
func (m *Manager) clean(path string) (string, error) {
	if len(path) > maxPathLen || strings.ContainsRune(path, 0) {
		return "", invalid(errors.New("path is too long or holds a zero byte"))
	}
	c := filepath.Clean(path)
	if c != strings.TrimSuffix(path, "/") || !strings.HasPrefix(c, m.root+"/") {
		return "", invalid(fmt.Errorf("path %.200q is not a plain path below %s", path, m.root))
	}
	return c, nil
}

// how is the way that everything below the root is opened: no symbolic link is followed.
func how(flags uint64) *unix.OpenHow {
	return &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
}

func (m *Manager) openRoot() (int, error) {
	fd, err := unix.Open(m.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: m.root, Err: err}
	}
	return fd, nil
}

// open returns an O_PATH descriptor of a clean path.
func (m *Manager) open(path string) (*os.File, error) {
	root, err := m.openRoot()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path[len(m.root)+1:], how(unix.O_PATH))
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeDir makes a directory and those above it, and returns an O_PATH descriptor. made says whether
// the last one is new.
func (m *Manager) makeDir(path string, mode uint32) (dir *os.File, made bool, err error) {
	fd, err := m.openRoot()
	if err != nil {
		return nil, false, err
	}
	for part := range strings.SplitSeq(path[len(m.root)+1:], "/") {
		merr := unix.Mkdirat(fd, part, mode)
		if merr != nil && !errors.Is(merr, unix.EEXIST) {
			unix.Close(fd)
			return nil, false, &os.PathError{Op: "mkdir", Path: path, Err: merr}
		}
		made = merr == nil
		next, err := unix.Openat2(fd, part, how(unix.O_PATH|unix.O_DIRECTORY))
		unix.Close(fd)
		if err != nil {
			return nil, false, &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), path), made, nil
}

// removeDir removes an empty directory that makeDir made. One that is in use by now stays.
func (m *Manager) removeDir(path string) error {
	err := unix.Rmdir(path)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
