// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// used are the paths below the base that containers are made of, by container.
type used map[string][]string

// Use records the absolute paths of a container's files; paths that are not below the base do not matter.
// Until Unuse the host changes it only as kubelet updates volumes.
func (r *Receiver) Use(id string, paths []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range paths {
		if rel, ok := strings.CutPrefix(path.Clean(p), r.base+"/"); ok {
			r.used[id] = append(r.used[id], rel)
		}
	}
}

// Unuse removes a container's record.
func (r *Receiver) Unuse(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, id)
}

// below says whether something at or below a path is in use.
func (u used) below(rel string) bool {
	for _, paths := range u {
		if slices.ContainsFunc(paths, func(p string) bool { return p == rel || strings.HasPrefix(p, rel+"/") }) {
			return true
		}
	}
	return false
}

// allows refuses changes of paths in use and of their parents. Below a path in use kubelet's updates pass.
func (u used) allows(base, rel string, req *agent.CopyFileRequest) error {
	if u.below(rel) {
		return fmt.Errorf("a container is made of it: %w", errdefs.ErrFailedPrecondition)
	}
	for _, paths := range u {
		for _, p := range paths {
			inner, ok := strings.CutPrefix(rel, p+"/")
			if ok && !isUpdate(beneath.Dir(base), p, inner, req) {
				return fmt.Errorf("a container is made of %s, in which only kubelet's kind of update is possible: %w", p,
					errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// Names in a volume that kubelet updates: each state is a directory whose name begins with two dots, a link
// leads to the current one, and what containers see are links through that.
const (
	dataLink  = contract.KubeletData
	stateMark = ".."
)

// isUpdate says whether a change within a volume is a step of an update: a new state, the swap of the link,
// the removal of an old state, and the links that users see. The current state is never changed.
func isUpdate(base beneath.Dir, volume, inner string, req *agent.CopyFileRequest) bool {
	top, rest, _ := strings.Cut(inner, "/")
	target := string(req.Data)
	link := req.FileMode&unix.S_IFMT == unix.S_IFLNK && !req.Remove
	switch {
	case top == dataLink:
		return rest == "" && link && strings.HasPrefix(target, stateMark) && target != stateMark &&
			!strings.Contains(target, "/")
	case strings.HasPrefix(top, stateMark):
		return current(base, volume) != top
	case rest != "":
		return false
	case req.Remove:
		return isLink(base, volume+"/"+top)
	}
	return link && strings.HasPrefix(target, dataLink+"/")
}

// current is the name of a volume's current state.
func current(base beneath.Dir, volume string) string {
	dir, err := base.Open(string(base) + "/" + volume)
	if err != nil {
		return ""
	}
	defer dir.Close()
	buf := make([]byte, maxTarget)
	n, err := unix.Readlinkat(int(dir.Fd()), dataLink, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// isLink says whether there is nothing, or a symbolic link.
func isLink(base beneath.Dir, rel string) bool {
	dir, name, err := base.Parent(string(base) + "/" + rel)
	if err != nil {
		return false
	}
	defer dir.Close()
	st, err := spot{int(dir.Fd()), name, rel}.lstat()
	return err == nil && (st == nil || st.Mode&unix.S_IFMT == unix.S_IFLNK)
}
