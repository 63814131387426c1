// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
)

// Permissions that an fs_group volume gets, as Kubernetes gives them.
const (
	groupWrite = 0o660
	groupDir   = unix.S_ISGID | 0o110
)

// applyFSGroup gives a volume to a group, recursively.
func (m *Manager) applyFSGroup(point string, g *agent.FSGroup) error {
	if g == nil {
		return nil
	}
	dir, err := m.dir.Open(point)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(dir.Fd()), &st), unix.Fstatfs(int(dir.Fd()), &fs)); err != nil {
		return fmt.Errorf("fs_group: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return invalid(errors.New("fs_group on something that is not a directory"))
	}
	rw := uint32(groupWrite)
	if fs.Flags&unix.ST_RDONLY != 0 {
		return nil // cannot be changed, and is the same for everybody
	}
	want := rw | groupDir
	if g.GetGroupChangePolicy() == types.FSGroupChangePolicy_OnRootMismatch && st.Gid == g.GetGroupId() &&
		st.Mode&want == want {
		return nil
	}
	if err := chgrpTree(int(dir.Fd()), ".", int(g.GetGroupId()), 0); err != nil {
		return fmt.Errorf("fs_group %d: %w", g.GetGroupId(), err)
	}
	return nil
}

const maxDepth = 1024

// chgrpTree changes a directory after its entries, so that an incomplete change shows at the root.
func chgrpTree(parent int, name string, gid, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if err := chgrpEntry(fd, n, gid, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &os.PathError{Op: "list", Path: name, Err: err}
		}
	}
	return chgrp(dir, gid, groupWrite|groupDir)
}

func chgrpEntry(fd int, name string, gid, depth int) error {
	e, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // a container that has the volume has removed it
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(e), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	switch {
	case st.IsDir():
		return chgrpTree(e, ".", gid, depth+1)
	case st.Mode()&os.ModeSymlink != 0:
		return os.NewSyscallError("lchown", unix.Fchownat(e, "", -1, gid, unix.AT_EMPTY_PATH))
	}
	return chgrp(f, gid, groupWrite)
}

// chgrp changes the file of a descriptor, not the one that its name leads to by now.
func chgrp(f *os.File, gid int, add uint32) error {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	if err == nil {
		err = unix.Fchownat(int(f.Fd()), "", -1, gid, unix.AT_EMPTY_PATH)
	}
	if err == nil {
		err = unix.Chmod(beneath.Proc(f), st.Mode&0o7777|add) // after chown, which clears set-id bits
	}
	if err != nil {
		return &os.PathError{Op: "chgrp", Path: f.Name(), Err: err}
	}
	return nil
}
