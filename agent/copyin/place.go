// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
)

// spot is where a file goes: a name in an open directory.
type spot struct {
	dir  int
	name string
	rel  string // below the base
}

// lstat returns the status of the file, or nil if there is none.
func (s spot) lstat() (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(s.dir, s.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return &st, os.NewSyscallError("fstatat", err)
}

// noDir refuses to put something else in place of a directory.
func (s spot) noDir() error {
	st, err := s.lstat()
	if err == nil && st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = fmt.Errorf("a directory of that name exists: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}

func (r *Receiver) place(rel string, req *agent.CopyFileRequest) error {
	var dir *os.File
	var err error
	if up := path.Dir(rel); up != "." { // those that exist keep their mode
		dir, _, err = r.dir().Make(r.base+"/"+up, uint32(perm(req.DirMode, 0o750).Perm()))
	} else {
		dir, _, err = r.dir().Parent(r.base + "/" + rel)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	at := spot{int(dir.Fd()), path.Base(rel), rel}
	switch req.FileMode & unix.S_IFMT {
	case unix.S_IFREG:
		return r.placeFile(at, req)
	case unix.S_IFDIR:
		return placeDir(at, req)
	case unix.S_IFLNK:
		return r.placeLink(at, req)
	}
	return fmt.Errorf("file type %#o: %w", req.FileMode&unix.S_IFMT, errdefs.ErrInvalidArgument)
}

// perm takes the permission and set-id bits of a st_mode.
func perm(mode, fallback uint32) os.FileMode {
	if mode == 0 {
		mode = fallback
	}
	m := os.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]os.FileMode{
		unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky,
	} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

func (r *Receiver) placeFile(at spot, req *agent.CopyFileRequest) error {
	part := filepath.Join(r.base, partsDir, r.part(at.rel))
	flags := os.O_WRONLY | unix.O_NOFOLLOW
	if req.Offset == 0 {
		if err := os.RemoveAll(part); err != nil {
			return err
		}
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(part, flags, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("piece at %d of a file that was not begun: %w", req.Offset, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	done, err := writePiece(f, req)
	if err = errors.Join(err, f.Close()); err != nil || !done {
		return err
	}
	if err := at.noDir(); err != nil {
		return err
	}
	if err := setTime(unix.AT_FDCWD, part, req); err != nil {
		return err
	}
	return r.complete(part, at)
}

// complete gives a file or link its name.
func (r *Receiver) complete(part string, at spot) error {
	if err := unix.Renameat(unix.AT_FDCWD, part, at.dir, at.name); err != nil {
		return os.NewSyscallError("rename", err)
	}
	delete(r.parts, at.rel)
	return nil
}

// setTime sets the time of the last change, of a link its own.
func setTime(dir int, name string, req *agent.CopyFileRequest) error {
	if req.MtimeNs == 0 {
		return nil
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(req.MtimeNs)}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

// writePiece appends a piece and gives the complete file its owner and mode.
func writePiece(f *os.File, req *agent.CopyFileRequest) (done bool, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	if size != req.Offset {
		return false, fmt.Errorf("piece at %d, but %d bytes have come: %w", req.Offset, size, errdefs.ErrFailedPrecondition)
	}
	if _, err := f.Write(req.Data); err != nil {
		return false, err
	}
	if size+int64(len(req.Data)) < req.FileSize {
		return false, nil
	}
	if err := f.Chown(ids(req)); err != nil {
		return false, err
	}
	return true, f.Chmod(perm(req.FileMode, 0))
}

// placeDir makes a directory, or gives one that is there owner and mode.
func placeDir(at spot, req *agent.CopyFileRequest) error {
	st, err := at.lstat()
	if err != nil {
		return err
	}
	if st != nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := unix.Unlinkat(at.dir, at.name, 0); err != nil {
			return os.NewSyscallError("unlink", err)
		}
		st = nil
	}
	if st == nil {
		if err := unix.Mkdirat(at.dir, at.name, 0o700); err != nil {
			return os.NewSyscallError("mkdir", err)
		}
	}
	// The opened directory is changed, not another one that has the name a moment later.
	fd, err := unix.Openat(at.dir, at.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	dir := os.NewFile(uintptr(fd), at.name)
	defer dir.Close()
	uid, gid := ids(req)
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return os.NewSyscallError("chown", err)
	}
	if err := os.Chmod(beneath.Proc(dir), perm(req.FileMode, 0o755)); err != nil {
		return err
	}
	return setTime(at.dir, at.name, req)
}

func (r *Receiver) placeLink(at spot, req *agent.CopyFileRequest) error {
	if err := checkTarget(at.rel, req); err != nil {
		return err
	}
	if err := at.noDir(); err != nil {
		return err
	}
	// The name changes hands in one step: a reader sees the old target or the new one.
	part := filepath.Join(r.base, partsDir, r.part(at.rel))
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.Symlink(string(req.Data), part); err != nil {
		return err
	}
	uid, gid := ids(req)
	err := os.Lchown(part, uid, gid)
	if err == nil {
		err = setTime(unix.AT_FDCWD, part, req)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return r.complete(part, at)
}

// checkTarget admits a link's target. A link at the top, where the sources of mounts are, and one that the
// host does not declare to be content of a directory leads nowhere but beside itself or below.
func checkTarget(rel string, req *agent.CopyFileRequest) error {
	target := string(req.Data)
	if n := len(target); n == 0 || n > maxTarget || strings.ContainsRune(target, 0) {
		return fmt.Errorf("link target of %d bytes: %w", n, errdefs.ErrInvalidArgument)
	}
	if req.Inner && strings.Contains(rel, "/") {
		return nil
	}
	if path.IsAbs(target) || slices.Contains(strings.Split(target, "/"), "..") {
		return fmt.Errorf("link to %q: an absolute target, or one with \"..\", is only accepted within a directory that is "+
			"copied: %w", target, errdefs.ErrInvalidArgument)
	}
	return nil
}
