// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package copyin writes files that the host sends in pieces below one directory of the guest. Paths
// come from the host and are resolved beneath that directory without following symbolic links, because
// containers may have put some there. Files that a running container is made of are not changed; volumes are
// changed in the steps in which kubelet updates them. A file appears under its name when it is complete.
// Until then it is in a directory of its own, so that a temporary name never collides with a name of the host.
package copyin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
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
	used  used              // guarded by mu
}

// New makes a receiver for the directory base, which is made when the first file comes.
func New(base string) *Receiver {
	return &Receiver{base: base, parts: map[string]string{}, used: used{}}
}

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
	if err := r.used.allows(r.base, rel, req); err != nil {
		return err
	}
	if req.Remove {
		return r.remove(rel)
	}
	if err := os.MkdirAll(filepath.Join(r.base, partsDir), 0o700); err != nil {
		return err
	}
	return r.place(rel, req)
}

// remove removes a file, a link or a tree. A missing one is no error.
func (r *Receiver) remove(rel string) error {
	if err := r.drop(func(part string) bool { return part == rel || strings.HasPrefix(part, rel+"/") }); err != nil {
		return err
	}
	dir, name, err := r.dir().Parent(r.base + "/" + rel)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	root, err := os.OpenRoot(beneath.Proc(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

func (r *Receiver) dir() beneath.Dir { return beneath.Dir(r.base) }

// drop removes the incomplete files that match says belong to what goes.
func (r *Receiver) drop(match func(rel string) bool) error {
	var errs []error
	for rel, part := range r.parts {
		if match(rel) {
			delete(r.parts, rel)
			errs = append(errs, os.RemoveAll(filepath.Join(r.base, partsDir, part)))
		}
	}
	return errors.Join(errs...)
}

// part names the incomplete file of rel.
func (r *Receiver) part(rel string) string {
	sum := sha256.Sum256([]byte(rel))
	name := hex.EncodeToString(sum[:])
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

// Forget removes the copies for a container: entries named <id>-<16 hex digits>-<name>.
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
	errs := []error{err, r.drop(func(rel string) bool {
		top, _, _ := strings.Cut(rel, "/")
		return belongs(top, id)
	})}
	for _, e := range entries {
		if belongs(e.Name(), id) && !r.used.below(e.Name()) {
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

// relative returns p relative to base. It is purely lexical; links are package beneath's business.
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
