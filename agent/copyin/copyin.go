// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package copyin writes files that the host sends in pieces below one directory of the guest. Paths
// come from the host and are resolved beneath that directory: neither ".." nor a symbolic link
// leads out of it. A file appears under its name when it is complete; until then it is in a directory
// of its own, so that every name that a file can have on the host is possible here.
package copyin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

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

// partsDir is the directory below the base with the files that are not complete.
const partsDir = ".coco-part"

// Receiver takes files for one directory.
type Receiver struct {
	base string

	mu    sync.Mutex        // one request at a time: pieces of one file must not interleave
	parts map[string]string // guarded by mu; files that are not complete: path below base, name in partsDir
}

// New makes a receiver for the directory base, which is made when the first file comes.
func New(base string) *Receiver { return &Receiver{base: base, parts: map[string]string{}} }

// Copy handles one request.
func (r *Receiver) Copy(req *agent.CopyFileRequest) error {
	name := req.GetPath()
	if raw := req.GetRawPath(); len(raw) > 0 {
		name = string(raw)
	}
	rel, err := relative(r.base, name)
	if err != nil {
		return err
	}
	if err := r.copy(rel, req); err != nil {
		what := "copy"
		if req.Remove {
			what = "remove"
		}
		return printable(fmt.Errorf("%s %q: %w", what, name, err))
	}
	return nil
}

func (r *Receiver) copy(rel string, req *agent.CopyFileRequest) error {
	if err := check(req); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.Remove {
		return r.remove(rel)
	}
	if err := os.MkdirAll(filepath.Join(r.base, partsDir), 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(r.base)
	if err != nil {
		return err
	}
	defer root.Close()
	return r.place(root, rel, req)
}

// remove takes away a file, a link or a tree. What is not there is fine.
func (r *Receiver) remove(rel string) error {
	root, err := os.OpenRoot(r.base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	err = r.drop(root, func(part string) bool { return part == rel || strings.HasPrefix(part, rel+"/") })
	return errors.Join(err, root.RemoveAll(rel))
}

// drop removes the incomplete files that match says belong to what goes.
func (r *Receiver) drop(root *os.Root, match func(rel string) bool) error {
	var errs []error
	for rel, part := range r.parts {
		if match(rel) {
			delete(r.parts, rel)
			errs = append(errs, root.RemoveAll(part))
		}
	}
	return errors.Join(errs...)
}

// part names the incomplete file of rel.
func (r *Receiver) part(rel string) string {
	sum := sha256.Sum256([]byte(rel))
	name := partsDir + "/" + hex.EncodeToString(sum[:])
	r.parts[rel] = name
	return name
}

// printable makes the text of an error one that a message can carry: names that come from the host may
// hold any byte.
func printable(err error) error {
	if utf8.ValidString(err.Error()) {
		return err
	}
	return &quoted{err}
}

type quoted struct{ error }

func (q *quoted) Error() string { return strings.ToValidUTF8(q.error.Error(), "\ufffd") }
func (q *quoted) Unwrap() error { return q.error }

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
	errs := []error{err, r.drop(root, func(rel string) bool {
		top, _, _ := strings.Cut(rel, "/")
		return belongs(top, id)
	})}
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
	}
	rel, ok := strings.CutPrefix(p, base+"/")
	if !ok || rel == "" {
		return bad("the path is not below " + base)
	}
	if top, _, _ := strings.Cut(rel, "/"); top == partsDir {
		return bad("the name " + partsDir + " is reserved there")
	}
	return rel, nil
}

func check(req *agent.CopyFileRequest) error {
	end := req.Offset + int64(len(req.Data))
	switch {
	case req.FileSize < 0 || req.FileSize > maxSize || req.Offset < 0 || end < 0:
		return fmt.Errorf("size %d, offset %d: %w", req.FileSize, req.Offset, errdefs.ErrInvalidArgument)
	case req.Uid == -1 || req.Gid == -1:
		return fmt.Errorf("owner %d:%d: %w", req.Uid, req.Gid, errdefs.ErrInvalidArgument)
	case req.FileMode&unix.S_IFMT == unix.S_IFREG && end > req.FileSize:
		return fmt.Errorf("data up to %d exceed the stated size %d: %w", end, req.FileSize, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ids are the owner of a file: 32 bits without a sign, in fields that have one.
func ids(req *agent.CopyFileRequest) (uid, gid int) {
	return int(uint32(req.Uid)), int(uint32(req.Gid)) //nolint:gosec // the same bits
}

func (r *Receiver) place(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	if dir := path.Dir(rel); dir != "." {
		if err := makeParents(root, dir, perm(req.DirMode, 0o750)); err != nil {
			return err
		}
	}
	switch req.FileMode & unix.S_IFMT {
	case unix.S_IFREG:
		return r.placeFile(root, rel, req)
	case unix.S_IFDIR:
		return placeDir(root, rel, req)
	case unix.S_IFLNK:
		return r.placeLink(root, rel, req)
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

func (r *Receiver) placeFile(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	part := r.part(rel)
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
	if err := setTime(root, part, req); err != nil {
		return err
	}
	return r.complete(root, part, rel)
}

// complete gives a file or link its name.
func (r *Receiver) complete(root *os.Root, part, rel string) error {
	if err := root.Rename(part, rel); err != nil {
		return err
	}
	delete(r.parts, rel)
	return nil
}

// setTime sets the time of the last change, of a link its own.
func setTime(root *os.Root, name string, req *agent.CopyFileRequest) error {
	if req.MtimeNs == 0 {
		return nil
	}
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(req.MtimeNs)}
	err = unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), times, unix.AT_SYMLINK_NOFOLLOW)
	return os.NewSyscallError("utimensat", err)
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
	uid, gid := ids(req)
	if err := root.Lchown(rel, uid, gid); err != nil {
		return err
	}
	if err := root.Chmod(rel, perm(req.FileMode, 0o755)); err != nil {
		return err
	}
	return setTime(root, rel, req)
}

func (r *Receiver) placeLink(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	if n := len(req.Data); n == 0 || n > maxTarget || strings.ContainsRune(string(req.Data), 0) {
		return fmt.Errorf("link target of %d bytes: %w", n, errdefs.ErrInvalidArgument)
	}
	if st, err := root.Lstat(rel); err == nil && st.IsDir() {
		return fmt.Errorf("a directory of that name exists: %w", errdefs.ErrFailedPrecondition)
	}
	// The name changes hands in one step: whoever reads through it sees the old target or the new one.
	part := r.part(rel)
	if err := root.RemoveAll(part); err != nil {
		return err
	}
	if err := root.Symlink(string(req.Data), part); err != nil {
		return err
	}
	uid, gid := ids(req)
	err := root.Lchown(part, uid, gid)
	if err == nil {
		err = setTime(root, part, req)
	}
	if err != nil {
		return errors.Join(err, root.Remove(part))
	}
	return r.complete(root, part, rel)
}
