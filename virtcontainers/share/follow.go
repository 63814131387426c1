// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/virtcontainers/copytree"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// kubelet keeps configMaps, secrets, projected and downward API volumes up to date so that a reader
// never sees half of a change: each state is a directory of its own (..2026_11_24_…), ..data is a
// link to the current one, and the names that users see are links through ..data. A change is a new
// directory and a rename over ..data. The guest's copy goes through the same steps.
const (
	dataLink = contract.KubeletData
	ownNames = ".." // names that begin so are kubelet's
)

var errEnded = fmt.Errorf("the pod has ended: %w", errdefs.ErrUnavailable)

// follow copies a volume and keeps the copy up to date from now on.
func (s *Set) follow(ctx context.Context, v *shared, source *os.File) (err error) {
	if v.id, err = hostfs.IDOf(source); err != nil {
		return err
	}
	if err := s.watch1(source); err != nil {
		return err
	}
	v.mirror = &copytree.Mirror{}
	return v.mirror.Sync(ctx, source, s.target(v.guest), followed)
}

// watch1 begins to watch a volume; the first one starts the watcher.
func (s *Set) watch1(dir *os.File) error {
	s.mu.Lock()
	w := s.watcher
	s.mu.Unlock()
	if w == nil {
		fresh, err := hostvolume.NewWatcher()
		if err != nil {
			return err
		}
		if w = s.offer(fresh); w != fresh {
			_ = fresh.Close() // another volume was faster
		} else if !s.o.Spawn(func(ctx context.Context) { s.watchVolumes(ctx, w) }) {
			_ = w.Close()
			return errEnded
		}
	}
	return w.Add(dir)
}

// offer makes w the pod's watcher unless there is one, and returns the pod's.
func (s *Set) offer(w *hostvolume.Watcher) *hostvolume.Watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watcher == nil {
		s.watcher = w
	}
	return s.watcher
}

// watchVolumes brings volumes up to date when they change, until the pod ends.
func (s *Set) watchVolumes(ctx context.Context, w *hostvolume.Watcher) {
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	for {
		dirs, err := w.Next()
		if err != nil {
			if ctx.Err() == nil {
				s.o.Log.Error("volumes are not updated any more", "pod", s.o.Pod, "error", err)
			}
			return
		}
		for _, d := range dirs {
			if err := s.refresh(ctx, d); err != nil && ctx.Err() == nil && !s.o.Ended() {
				s.o.Log.Warn("a volume in the guest is not up to date", "pod", s.o.Pod, "volume", d, "error", err)
			}
		}
	}
}

// refresh brings one volume up to date.
func (s *Set) refresh(ctx context.Context, dir string) error {
	v := s.find(dir)
	if v == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Config.Runtime.CreateTimeout)
	defer cancel()
	free, err := v.hold(ctx)
	if err != nil {
		return err
	}
	defer free()
	if !v.made {
		return nil // it is never older than the container's creation
	}
	// The directory is opened anew, and not kept open, which would keep kubelet from unmounting it: so it must be
	// the one that it was.
	source, err := hostvolume.Open(v.origin, v.source)
	if errdefs.IsNotFound(err) {
		return nil // the pod is being deleted
	}
	if err != nil {
		return err
	}
	defer source.Close()
	id, err := hostfs.IDOf(source)
	if err != nil {
		return err
	}
	if id != v.id {
		return fmt.Errorf("%s is another directory than when the container was made: %w", v.source,
			errdefs.ErrFailedPrecondition)
	}
	err = v.mirror.Sync(ctx, source, s.target(v.guest), followed)
	if errors.Is(err, fs.ErrNotExist) && gone(source) {
		return nil
	}
	return err
}

// gone says whether a directory has been removed.
func gone(dir *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(dir.Fd()), &st) == nil && st.Nlink == 0
}

// followed is what of a volume of kubelet's is copied.
var followed = copytree.View{Skip: current, OneFS: true}

// current says which names in a volume are not part of its current state: those of kubelet's that
// ..data does not lead to.
func current(dir *os.File) func(rel string) bool {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), dataLink, buf)
	target := string(buf[:max(n, 0)])
	return func(rel string) bool {
		top, _, _ := strings.Cut(rel, "/")
		return err == nil && strings.HasPrefix(top, ownNames) && top != dataLink && top != target
	}
}
