// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package copyin writes files that the host sends in pieces below one directory of the guest. Paths
// come from the host and are resolved beneath that directory: neither ".." nor a symbolic link
// leads out of it. A file appears under its name when it is complete.
package copyin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/coco-shim/coco/api/agent"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Bounds of one request.
const (
	maxPath   = 4096
	maxSize   = 4 << 30
	maxTarget = 4095 // PATH_MAX without the final NUL
)

// suffix marks a file that is not complete. Names that end so are refused.
const suffix = ".coco-part"

// Receiver takes files for one directory.
type Receiver struct {
	base string
	mu   sync.Mutex // one request at a time: pieces of one file must not interleave
}

// New makes a receiver for the directory base, which is made when the first file comes.
func New(base string) *Receiver { return &Receiver{base: base} }

// Copy handles one request.
func (r *Receiver) Copy(req *agent.CopyFileRequest) error {
	rel, err := relative(r.base, req.Path)
	if err != nil {
		return err
	}
	if err := check(req); err != nil {
		return fmt.Errorf("copy %s: %w", req.Path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.Remove {
		return r.remove(rel, req.Path)
	}
	if err := os.MkdirAll(r.base, 0o700); err != nil {
		return fmt.Errorf("copy %s: %w", req.Path, err)
	}
	root, err := os.OpenRoot(r.base)
	if err != nil {
		return fmt.Errorf("copy %s: %w", req.Path, err)
	}
	defer root.Close()
	if err := place(root, rel, req); err != nil {
		return fmt.Errorf("copy %s: %w", req.Path, err)
	}
	return nil
}

// remove takes away a file, a link or a tree. What is not there is fine.
func (r *Receiver) remove(rel, name string) error {
	root, err := os.OpenRoot(r.base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	defer root.Close()
	if err := root.RemoveAll(rel); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Forget removes what was copied for a container: entries named <id>-<16 hex digits>-<name>.
func (r *Receiver) Forget(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	root, err := os.OpenRoot(r.base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove copies of container %s: %w", id, err)
	}
	defer root.Close()
	entries, err := os.ReadDir(r.base)
	errs := []error{err}
	for _, e := range entries {
		if belongs(e.Name(), id) {
			errs = append(errs, root.RemoveAll(e.Name()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove copies of container %s: %w", id, err)
	}
	return nil
}

func belongs(name, id string) bool {
	rest, ok := strings.CutPrefix(name, id+"-")
	return ok && len(rest) > 17 && rest[16] == '-' && strings.Trim(rest[:16], "0123456789abcdef") == ""
}

// relative returns p relative to base. It is purely lexical; links are the Root's business.
func relative(base, p string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("copy %q: %s: %w", p, why, errdefs.ErrInvalidArgument)
	}
	switch {
	case len(p) > maxPath || strings.ContainsRune(p, 0):
		return bad("not a path")
	case path.Clean(p) != p:
		return bad("the path is not in its simplest form")
	case strings.HasSuffix(p, suffix):
		return bad("names ending in " + suffix + " are reserved")
	}
	rel, ok := strings.CutPrefix(p, base+"/")
	if !ok || rel == "" {
		return bad("the path is not below " + base)
	}
	return rel, nil
}

func check(req *agent.CopyFileRequest) error {
	end := req.Offset + int64(len(req.Data))
	switch {
	case req.FileSize < 0 || req.FileSize > maxSize || req.Offset < 0 || end < 0:
		return fmt.Errorf("size %d, offset %d: %w", req.FileSize, req.Offset, errdefs.ErrInvalidArgument)
	case req.Uid < 0 || req.Gid < 0:
		return fmt.Errorf("owner %d:%d: %w", req.Uid, req.Gid, errdefs.ErrInvalidArgument)
	case req.FileMode&unix.S_IFMT == unix.S_IFREG && end > req.FileSize:
		return fmt.Errorf("data up to %d exceed the stated size %d: %w", end, req.FileSize, errdefs.ErrInvalidArgument)
	}
	return nil
}

func place(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	if dir := path.Dir(rel); dir != "." {
		if err := makeParents(root, dir, perm(req.DirMode, 0o750)); err != nil {
			return err
		}
	}
	switch req.FileMode & unix.S_IFMT {
	case unix.S_IFREG:
		return placeFile(root, rel, req)
	case unix.S_IFDIR:
		return placeDir(root, rel, req)
	case unix.S_IFLNK:
		return placeLink(root, rel, req)
	}
	return fmt.Errorf("file type %#o: %w", req.FileMode&unix.S_IFMT, errdefs.ErrInvalidArgument)
}

// makeParents makes directories that are missing; those that exist keep their mode.
func makeParents(root *os.Root, dir string, mode os.FileMode) error {
	if _, err := root.Stat(dir); err == nil {
		return nil
	}
	return root.MkdirAll(dir, mode.Perm())
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

func placeFile(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	part := rel + suffix
	flags := os.O_WRONLY | unix.O_NOFOLLOW
	if req.Offset == 0 {
		if err := root.RemoveAll(part); err != nil {
			return err
		}
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := root.OpenFile(part, flags, 0o600)
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
	if st, err := root.Lstat(rel); err == nil && st.IsDir() {
		return fmt.Errorf("a directory of that name exists: %w", errdefs.ErrFailedPrecondition)
	}
	return root.Rename(part, rel)
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
	if err := f.Chown(int(req.Uid), int(req.Gid)); err != nil {
		return false, err
	}
	return true, f.Chmod(perm(req.FileMode, 0))
}

func placeDir(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	st, err := root.Lstat(rel)
	if err == nil && !st.IsDir() {
		if err := root.Remove(rel); err != nil {
			return err
		}
	}
	if err != nil || !st.IsDir() {
		if err := root.Mkdir(rel, 0o700); err != nil {
			return err
		}
	}
	if err := root.Lchown(rel, int(req.Uid), int(req.Gid)); err != nil {
		return err
	}
	return root.Chmod(rel, perm(req.FileMode, 0o755))
}

func placeLink(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	if n := len(req.Data); n == 0 || n > maxTarget || strings.ContainsRune(string(req.Data), 0) {
		return fmt.Errorf("link target of %d bytes: %w", n, errdefs.ErrInvalidArgument)
	}
	if st, err := root.Lstat(rel); err == nil && st.IsDir() {
		return fmt.Errorf("a directory of that name exists: %w", errdefs.ErrFailedPrecondition)
	}
	// The name changes hands in one step: whoever reads through it sees the old target or the new one.
	part := rel + suffix
	if err := root.RemoveAll(part); err != nil {
		return err
	}
	if err := root.Symlink(string(req.Data), part); err != nil {
		return err
	}
	if err := root.Lchown(part, int(req.Uid), int(req.Gid)); err != nil {
		return errors.Join(err, root.Remove(part))
	}
	return root.Rename(part, rel)
}
