// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostfs opens files and directories of the host for a process that runs as root, in directories
// that other users may change at the same time. A name is looked up once. The result is a descriptor, and
// every later step uses the descriptor or a path beneath it. An open neither reads, waits nor creates: descriptors are
// O_PATH until Reopen.
package hostfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// beneath keeps a look-up within the directory that it begins in, even under concurrent renames.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// OpenSource opens the source of a bind mount. links says that all symbolic links are followed, as the kernel does for
// mount(2). Without it only root's are, as /var/run and /lib: others than root must not have been able to put a link
// where it is, or to change a directory that leads to it.
func OpenSource(name string, links bool) (*os.File, error) {
	if links {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
		return openat2(unix.AT_FDCWD, name, name, &how)
	}
	if !path.IsAbs(name) {
		return nil, fmt.Errorf("%q is not an absolute path: %w", name, errdefs.ErrInvalidArgument)
	}
	at := name
	for range mostLinks {
		f, to, err := openToLink(at)
		if err != nil || f != nil {
			return f, err
		}
		at = to
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ELOOP}
}

// mostLinks is how many links one look-up follows, as in the kernel.
const mostLinks = 40

// openToLink opens an absolute path. If a link of root's is on the way or at its end, or "..", it returns the path that
// this leads to in place of a file.
func openToLink(name string) (_ *os.File, to string, err error) {
	at, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil || to != "" {
			err = errors.Join(err, at.Close())
		}
	}()
	var foreign error // why a link may be that of others
	parts := slices.DeleteFunc(strings.Split(name, "/"), func(p string) bool { return p == "" || p == "." })
	for i, part := range parts {
		dir, rest := "/"+path.Join(parts[:i]...), "/"+strings.Join(parts[i+1:], "/")
		if part == ".." { // dir has no links, so its own path tells the directory above it
			return nil, path.Dir(dir) + rest, nil
		}
		if foreign == nil {
			foreign = owned(at, dir)
		}
		next, err := Beneath(at, part, unix.O_PATH|unix.O_NOFOLLOW, true)
		if err != nil {
			return nil, "", &fs.PathError{Op: "open", Path: name, Err: errnoOf(err)}
		}
		target, err := readLink(next)
		if err == nil && target != "" {
			err = errors.Join(foreign, NotPseudo(at), ofRoot(next))
			if err != nil {
				err = fmt.Errorf("open %s: %s is a symbolic link that others than root may have put there: %w", name,
					path.Join(dir, part), err)
			}
		}
		if target == "" && err == nil {
			at, next = next, at
		}
		if err = errors.Join(err, next.Close()); err != nil {
			return nil, "", err
		}
		if target != "" {
			if !path.IsAbs(target) {
				target = dir + "/" + target
			}
			return nil, target + rest, nil
		}
	}
	return at, "", nil
}

// readLink reads where an open symbolic link leads to; "" is no link.
func readLink(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(int(f.Fd()), "", buf[:])
	if err != nil || n == 0 || n == len(buf) {
		return "", &fs.PathError{Op: "readlink", Path: f.Name(), Err: errors.Join(err, unix.ELOOP)}
	}
	return string(buf[:n]), nil
}

// ofRoot refuses a link that is not root's: in a sticky directory others have links of their own.
func ofRoot(link *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(link.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: link.Name(), Err: err}
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is user %d's: %w", link.Name(), st.Uid, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// OpenOwned opens a file in a directory that only root can change: so must be all directories that lead to it.
// No symbolic link is followed. The file itself may belong to any user.
func OpenOwned(name string) (*os.File, error) {
	if !path.IsAbs(name) || path.Clean(name) != name {
		return nil, fmt.Errorf("%q is not a clean absolute path: %w", name, errdefs.ErrInvalidArgument)
	}
	at, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i, part := range parts {
		if part == "" { // the root itself
			return at, nil
		}
		if err := owned(at, "/"+path.Join(parts[:i]...)); err != nil {
			return nil, errors.Join(err, at.Close())
		}
		next, err := Beneath(at, part, unix.O_PATH, true)
		if cerr := at.Close(); cerr != nil && err == nil {
			err = errors.Join(cerr, next.Close())
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: errnoOf(err)}
		}
		at = next
	}
	return at, nil
}

// owned says why others than root can change the names in a directory.
func owned(dir *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	others := st.Mode&0o002 != 0 || st.Mode&0o020 != 0 && st.Gid != 0
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return fmt.Errorf("%s is a symbolic link: %w", name, errdefs.ErrFailedPrecondition)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return &fs.PathError{Op: "open", Path: name, Err: unix.ENOTDIR}
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("the directory %s is user %d's and not root's, so what is in it cannot be relied on: %w",
			name, st.Uid, errdefs.ErrFailedPrecondition)
	case others && st.Mode&unix.S_ISVTX == 0: // in a sticky one, root's entries are root's
		return fmt.Errorf("others than root may write to the directory %s (mode %04o), so what is in it cannot be relied "+
			"on: %w",
			name, st.Mode&0o7777, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Beneath opens rel below a directory; "" is the directory. flags are open(2)'s; links are refused, one at the end
// too, and, unless cross is set, other file systems that are mounted below.
func Beneath(dir *os.File, rel string, flags uint64, cross bool) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneath}
	if !cross {
		how.Resolve |= unix.RESOLVE_NO_XDEV
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	if rel == "" {
		rel = "."
	}
	return openat2(int(dir.Fd()), rel, path.Join(dir.Name(), rel), &how)
}

func openat2(at int, rel, name string, how *unix.OpenHow) (*os.File, error) {
	for {
		fd, err := unix.Openat2(at, rel, how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

func errnoOf(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// Proc returns a path to the file of a descriptor, for calls that take no descriptor. The path leads to that file as
// long as the descriptor is open.
func Proc(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// Reopen opens a regular file or a directory for reading or writing. It does not wait: a named pipe, a
// device or a socket is refused, and nothing of it is touched.
func Reopen(f *os.File, flags int) (*os.File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() && !st.IsDir() {
		return nil, fmt.Errorf("%s is neither a file nor a directory: %w", f.Name(), errdefs.ErrFailedPrecondition)
	}
	fd, err := unix.Open(Proc(f), flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// pseudo are file systems whose files are views of the host's kernel: a copy would be a lie.
var pseudo = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEVPTS_SUPER_MAGIC: "devpts", unix.DEBUGFS_MAGIC: "debugfs",
	unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.BPF_FS_MAGIC: "bpf",
}

// NotPseudo refuses what lies on such a file system.
func NotPseudo(f *os.File) error {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return &fs.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	if name := pseudo[int64(sfs.Type)]; name != "" { // differs by architecture
		return fmt.Errorf("the source %s is on %s, a view of the host's kernel that a VM cannot share: %w", f.Name(), name,
			errdefs.ErrInvalidArgument)
	}
	return nil
}

// ID says which file a descriptor is open on.
type ID struct{ Dev, Ino uint64 }

// IDOf asks it.
func IDOf(f *os.File) (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return ID{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return ID{st.Dev, st.Ino}, nil
}
