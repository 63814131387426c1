// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/spec"
	"github.com/coco-shim/coco/virtcontainers/volume"
)

// kubelet keeps configMaps, secrets, projected and downward API volumes up to date so that a reader
// never sees half of a change: each state is a directory of its own (..2026_11_24_…), ..data is a
// link to the current one, and what the user sees are links through ..data. A change is a new
// directory and a rename over ..data. The guest's copy is led through the same steps.
const (
	dataLink = "..data"
	ownNames = ".." // names that begin so are kubelet's
)

// syncTries bounds how often a volume that changes while it is read is read again. Each time, kubelet
// has replaced it once more.
const syncTries = 8

// follow copies a volume and keeps the copy up to date from now on.
func (p *Pod) follow(ctx context.Context, v *podVolume) error {
	if err := p.watch1(v.source); err != nil {
		return err
	}
	v.sent = map[string]entry{}
	return p.syncVolume(ctx, v)
}

// watch1 begins to watch a volume; the first one starts the watcher.
func (p *Pod) watch1(dir string) error {
	p.volumes.mu.Lock()
	w := p.volumes.watcher
	p.volumes.mu.Unlock()
	if w == nil {
		fresh, err := volume.NewWatcher()
		if err != nil {
			return err
		}
		if w = p.volumes.offer(fresh); w != fresh {
			_ = fresh.Close() // another volume was faster
		} else if !p.life.spawn(func(ctx context.Context) { p.watchVolumes(ctx, w) }) {
			_ = w.Close()
			return errShutdown
		}
	}
	return w.Add(dir)
}

// offer makes w the pod's watcher unless there is one, and returns the pod's.
func (vs *volumes) offer(w *volume.Watcher) *volume.Watcher {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.watcher == nil {
		vs.watcher = w
	}
	return vs.watcher
}

// watchVolumes brings volumes up to date when they change, until the pod ends.
func (p *Pod) watchVolumes(ctx context.Context, w *volume.Watcher) {
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	for {
		dirs, err := w.Next()
		if err != nil {
			if ctx.Err() == nil {
				p.log.Error("volumes are not updated any more", "pod", p.opts.ID, "error", err)
			}
			return
		}
		for _, d := range dirs {
			if err := p.refresh(ctx, d); err != nil && ctx.Err() == nil && !p.ended() {
				p.log.Warn("a volume in the guest is not up to date", "pod", p.opts.ID, "volume", d, "error", err)
			}
		}
	}
}

// ended says whether the VM has, or is about to.
func (p *Pod) ended() bool {
	select {
	case <-p.vm.Done():
		return true
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// refresh brings one volume up to date.
func (p *Pod) refresh(ctx context.Context, dir string) error {
	v := p.volumes.find(dir)
	if v == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Config.Runtime.CreateTimeout)
	defer cancel()
	free, err := v.hold(ctx)
	if err != nil {
		return err
	}
	defer free()
	if !v.made {
		return nil // it is never older than the container's creation
	}
	return p.syncVolume(ctx, v)
}

// syncVolume makes the guest's copy like the host's directory.
func (p *Pod) syncVolume(ctx context.Context, v *podVolume) (err error) {
	for range syncTries {
		err = p.syncOnce(ctx, v)
		if !errors.Is(err, fs.ErrNotExist) && !errdefs.IsNotFound(err) {
			return err
		}
		if _, gone := os.Lstat(v.source); gone != nil && v.made {
			return nil // the pod is being deleted
		}
	}
	return err
}

// syncOnce sends what the guest lacks, then swaps ..data, then removes what is gone.
func (p *Pod) syncOnce(ctx context.Context, v *podVolume) error {
	now, err := survey(spec.Copy{Source: v.source, Guest: v.guest}, p.opts.Config.Runtime.MaxCopyMiB, current(v.source))
	if err != nil {
		return err
	}
	sink := sinkFunc(p.agent.copyFile)
	for _, e := range inOrder(v, now) {
		if err := send(ctx, sink, e); err != nil {
			return fmt.Errorf("copy %s into the guest: %w", e.path, err)
		}
		v.sent[e.guest] = e
	}
	for _, name := range stale(v.sent, now) {
		if p.agent.removes {
			if err := sink.CopyFile(ctx, &agent.CopyFileRequest{Path: name, Remove: true}); err != nil {
				return fmt.Errorf("remove %s in the guest: %w", name, err)
			}
		}
		for sent := range v.sent {
			if sent == name || strings.HasPrefix(sent, name+"/") {
				delete(v.sent, sent)
			}
		}
	}
	return nil
}

// current says which names in a volume are not part of its current state: those of kubelet's that
// ..data does not lead to.
func current(dir string) func(rel string) bool {
	target, err := os.Readlink(filepath.Join(dir, dataLink))
	return func(rel string) bool {
		top, _, _ := strings.Cut(rel, "/")
		return err == nil && strings.HasPrefix(top, ownNames) && top != dataLink && top != target
	}
}

// inOrder lists what has to be sent: the files of the new state, then the links that users see, and
// ..data as the last.
func inOrder(v *podVolume, now []entry) []entry {
	var files, links, data []entry
	for _, e := range now {
		if old, ok := v.sent[e.guest]; ok && old.same(e) {
			continue
		}
		switch {
		case path.Dir(e.guest) != v.guest || e.stat.Mode&unix.S_IFMT != unix.S_IFLNK:
			files = append(files, e)
		case path.Base(e.guest) == dataLink:
			data = append(data, e)
		default:
			links = append(links, e)
		}
	}
	return slices.Concat(files, links, data)
}

// same says whether the guest has an entry as it is now.
func (e entry) same(o entry) bool {
	a, b := e.stat, o.stat
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || e.target != o.target {
		return false
	}
	return a.Mode&unix.S_IFMT != unix.S_IFREG || a.Ino == b.Ino && a.Size == b.Size && a.Mtim == b.Mtim
}

// stale lists what the guest has and the host has not, links before directories, without what goes
// with its directory.
func stale(sent map[string]entry, now []entry) []string {
	there := map[string]bool{}
	for _, e := range now {
		there[e.guest] = true
	}
	var links, others []string
	for name, e := range sent {
		_, parent := sent[path.Dir(name)]
		switch {
		case there[name], parent && !there[path.Dir(name)]:
		case e.stat.Mode&unix.S_IFMT == unix.S_IFLNK:
			links = append(links, name)
		default:
			others = append(others, name)
		}
	}
	slices.Sort(links)
	slices.Sort(others)
	return append(links, others...)
}
