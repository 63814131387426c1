// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package beneath opens, makes and removes files below one directory of the guest, for paths that
// the host wrote. Containers share volumes below that directory and can put a symbolic link anywhere in
// them at any time. So a path is resolved once, by openat2(2), without following links, and every later
// step (a bind, a mount, an unmount) uses the descriptor. Package storage decides which mounts are made.
package beneath

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const maxPath = 4095 // PATH_MAX without the final NUL

// Dir is the directory, an absolute path without symbolic links that only the agent can change.
type Dir string

// Clean checks that a path is absolute, in its simplest form and strictly below the directory. A slash
// at its end is forgiven. It does not look at files.
func (d Dir) Clean(p string) (string, error) {
	if len(p) > maxPath || strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("path is too long or holds a zero byte: %w", errdefs.ErrInvalidArgument)
	}
	c := path.Clean(p)
	if c != strings.TrimSuffix(p, "/") || !strings.HasPrefix(c, string(d)+"/") {
		return "", fmt.Errorf("path %.200q is not a plain path below %s: %w", p, string(d), errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// how is the way in which everything below the directory is opened.
func how(flags uint64) *unix.OpenHow {
	return &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
}

func (d Dir) top() (int, error) {
	fd, err := unix.Open(string(d), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: string(d), Err: err}
	}
	return fd, nil
}

// openAt is openat2 until the kernel is sure that nothing moved meanwhile: a rename anywhere on the
// machine makes it answer EAGAIN, and a container may rename in a loop.
func openAt(dir int, name string, h *unix.OpenHow) (fd int, err error) {
	for range maxAgain {
		fd, err = unix.Openat2(dir, name, h)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return fd, err
}

const maxAgain = 1000

// Open returns an O_PATH descriptor of a path, which may be anything but a symbolic link.
func (d Dir) Open(p string) (*os.File, error) {
	p, err := d.Clean(p)
	if err != nil {
		return nil, err
	}
	top, err := d.top()
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	fd, err := openAt(top, p[len(d)+1:], how(unix.O_PATH))
	if err != nil {
		return nil, explain("open", p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		_ = f.Close()
		return nil, explain("open", p, errors.Join(err, unix.ELOOP))
	}
	return f, nil
}

// pathError is an error that is about the host's path and not about the guest.
type pathError struct {
	op, path, why string
	err           error
}

func (e *pathError) Error() string   { return e.op + " " + e.path + ": " + e.why }
func (e *pathError) Unwrap() []error { return []error{e.err, errdefs.ErrInvalidArgument} }

// explain gives errors that are about the host's path the class and the words for it.
func explain(op, p string, err error) error {
	for _, known := range []struct {
		err error
		why string
	}{
		{unix.ELOOP, "a symbolic link is on the way or at its end, which the agent does not follow"},
		{unix.ENOENT, "it does not exist in the guest"},
		{unix.ENOTDIR, "what is on the way is not a directory"},
	} {
		if errors.Is(err, known.err) {
			return &pathError{op, p, known.why, known.err}
		}
	}
	return &os.PathError{Op: op, Path: p, Err: err}
}

// Parent opens the directory that a path is in.
func (d Dir) Parent(p string) (dir *os.File, name string, err error) {
	p, err = d.Clean(p)
	if err != nil {
		return nil, "", err
	}
	if up := path.Dir(p); up != string(d) {
		dir, err = d.Open(up)
	} else {
		var fd int
		fd, err = d.top()
		dir = os.NewFile(uintptr(fd), up)
	}
	return dir, path.Base(p), err
}

// Make makes a directory and those above it, and returns an O_PATH descriptor. made says whether the
// last one is new.
func (d Dir) Make(p string, mode uint32) (dir *os.File, made bool, err error) {
	p, err = d.Clean(p)
	if err != nil {
		return nil, false, err
	}
	fd, err := d.top()
	if err != nil {
		return nil, false, err
	}
	for part := range strings.SplitSeq(p[len(d)+1:], "/") {
		merr := unix.Mkdirat(fd, part, mode)
		if merr != nil && !errors.Is(merr, unix.EEXIST) {
			unix.Close(fd)
			return nil, false, explain("mkdir", p, merr)
		}
		made = merr == nil
		next, err := openAt(fd, part, how(unix.O_PATH|unix.O_DIRECTORY))
		unix.Close(fd)
		if err != nil {
			return nil, false, explain("mkdir", p, err)
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), p), made, nil
}

// RemoveDir removes an empty directory. One that is in use by now, gone, or something else is left alone.
func (d Dir) RemoveDir(p string) error {
	return d.remove("rmdir", p, unix.AT_REMOVEDIR, unix.ENOTEMPTY, unix.EBUSY)
}

// RemoveFile removes a file or a symbolic link, if it is there.
func (d Dir) RemoveFile(p string) error { return d.remove("unlink", p, 0, unix.EISDIR) }

func (d Dir) remove(op, p string, flags int, fine ...error) error {
	dir, name, err := d.Parent(p)
	if err == nil {
		err = unix.Unlinkat(int(dir.Fd()), name, flags)
		_ = dir.Close()
	}
	// A link or a file on the way was put there by a container later.
	for _, ok := range append(fine, unix.ENOENT, unix.ELOOP, unix.ENOTDIR) {
		if errors.Is(err, ok) {
			return nil
		}
	}
	if err != nil {
		return explain(op, p, err)
	}
	return nil
}

// Reopen opens a regular file that a descriptor of this package stands for. Anything else is refused
// before it is opened: to open a pipe or a device has effects.
func Reopen(f *os.File) (out *os.File, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	// Control keeps the descriptor's number valid until it returns, even if f is closed meanwhile.
	cerr := c.Control(func(fd uintptr) {
		var st unix.Stat_t
		if err = unix.Fstat(int(fd), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			err = fmt.Errorf("%s is not a regular file: %w", f.Name(), errdefs.ErrFailedPrecondition)
		}
		if err == nil {
			out, err = os.Open(procPath(fd))
		}
	})
	return out, errors.Join(cerr, err)
}

// Proc returns a path to the file of a descriptor, for calls that take only paths. It cannot be redirected.
func Proc(f *os.File) string { return procPath(f.Fd()) }

func procPath(fd uintptr) string { return "/proc/self/fd/" + strconv.Itoa(int(fd)) }
