// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"errors"
	"fmt"
	"os"
	"path"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
)

// Root takes files for the root file system of a container that runs, which can change everything there meanwhile.
// Nothing incomplete has a name: a file is written without one, and replaces what has its name when it is complete.
type Root struct {
	mu   sync.Mutex
	file *os.File // guarded by mu; the file that is not complete
	name string   // guarded by mu; its path
}

// Copy handles one request. base is the root file system.
func (r *Root) Copy(base string, req *agent.CopyFileRequest) error {
	name := req.GetPath()
	if raw := req.GetRawPath(); len(raw) > 0 {
		name = string(raw)
	}
	rel, err := relative(base, name)
	if err != nil {
		return err
	}
	if err = check(req); err == nil && req.Remove {
		err = fmt.Errorf("nothing is removed there: %w", errdefs.ErrNotImplemented)
	}
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		err = r.place(base, rel, req)
	}
	if err != nil {
		return printable(fmt.Errorf("copy %q: %w", name, err))
	}
	return nil
}

func (r *Root) place(base, rel string, req *agent.CopyFileRequest) error {
	dir, _, err := beneath.Dir(base).Parent(base + "/" + rel)
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
		return linkIn(at, req)
	}
	return fmt.Errorf("file type %#o: %w", req.FileMode&unix.S_IFMT, errdefs.ErrInvalidArgument)
}

func (r *Root) placeFile(at spot, req *agent.CopyFileRequest) (err error) {
	if req.Offset == 0 {
		if err := r.drop(); err != nil {
			return err
		}
		fd, err := unix.Openat(at.dir, ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return os.NewSyscallError("open without a name", err)
		}
		r.file, r.name = os.NewFile(uintptr(fd), at.rel), at.rel
	}
	if r.file == nil || r.name != at.rel {
		return fmt.Errorf("piece at %d of a file that was not begun: %w", req.Offset, errdefs.ErrFailedPrecondition)
	}
	done, err := writePiece(r.file, req)
	if err == nil && !done {
		return nil
	}
	if err == nil {
		err = r.complete(at, req)
	}
	return errors.Join(err, r.drop())
}

// complete gives the file its time and its name.
func (r *Root) complete(at spot, req *agent.CopyFileRequest) error {
	if req.MtimeNs != 0 {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(req.MtimeNs)}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, beneath.Proc(r.file), times, 0); err != nil {
			return os.NewSyscallError("utimensat", err)
		}
	}
	if err := at.clear(); err != nil {
		return err
	}
	return os.NewSyscallError("link", unix.Linkat(unix.AT_FDCWD, beneath.Proc(r.file), at.dir, at.name,
		unix.AT_SYMLINK_FOLLOW))
}

// drop closes the file. Without a name, it is gone.
func (r *Root) drop() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file, r.name = nil, ""
	return err
}

// clear removes what has the name and is no directory.
func (s spot) clear() error {
	if err := s.noDir(); err != nil {
		return err
	}
	if err := unix.Unlinkat(s.dir, s.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return os.NewSyscallError("unlink", err)
	}
	return nil
}

// linkIn makes a symbolic link. A container may have any.
func linkIn(at spot, req *agent.CopyFileRequest) error {
	if err := at.clear(); err != nil {
		return err
	}
	if err := unix.Symlinkat(string(req.Data), at.dir, at.name); err != nil {
		return os.NewSyscallError("symlink", err)
	}
	uid, gid := ids(req)
	if err := unix.Fchownat(at.dir, at.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("chown", err)
	}
	return setTime(at.dir, at.name, req)
}
