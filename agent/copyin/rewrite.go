// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
)

// Copies says whether a request would replace a file that a container is made of: its copy of one file of the host.
func (r *Receiver) Copies(id string, req *agent.CopyFileRequest) bool {
	rel, ok := strings.CutPrefix(req.GetPath(), r.base+"/")
	r.mu.Lock()
	defer r.mu.Unlock()
	return ok && !req.Remove && belongs(rel, id) && !strings.Contains(rel, "/") && slices.Contains(r.used[id], rel)
}

// Rewrite gives such a file other content. The container is mounted with the file itself, so that a new file of that
// name would not reach it. The caller sees to it that the container has not started.
func (r *Receiver) Rewrite(req *agent.CopyFileRequest) (err error) {
	rel, err := relative(r.base, req.GetPath())
	if err == nil {
		err = check(req)
	}
	if err != nil {
		return err
	}
	if req.FileMode&unix.S_IFMT != unix.S_IFREG || req.Offset != 0 || req.FileSize != int64(len(req.Data)) {
		return fmt.Errorf("rewrite %q: not a whole file: %w", rel, errdefs.ErrInvalidArgument)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	dir, name, err := r.dir().Parent(r.base + "/" + rel)
	if err != nil {
		return fmt.Errorf("rewrite %q: %w", rel, err)
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("rewrite %q: %w", rel, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, f.Close()) }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("rewrite %q: not a regular file: %w", rel, errors.Join(err, errdefs.ErrFailedPrecondition))
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = writePiece(f, req)
	return err
}
