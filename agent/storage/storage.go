// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package storage is the guest's side of storage: it turns the agent protocol's Storage entries into
// mounts, and its Device entries into device numbers of the container's specification.
//
// A Manager counts the users of each mount point: a layer that several containers of a pod share
// is mounted once, and unmounted with its last user. Add either makes all mounts of a request or
// none. Everything in a request comes from the host and is checked. Mount points and
// directories lie below the Manager's root, are reached without following symbolic links, and are then
// used by descriptor (package beneath). Block devices that hold layers are opened through dm-verity,
// never directly.
package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/layer"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/image/verity/dm"
	"github.com/coco-shim/coco/internal/undo"
)

// maxStorages bounds a request.
const maxStorages = 1024

// Manager owns the mounts that were made on the host's request.
type Manager struct {
	// Load loads a kernel module of the guest image; nil: everything is there. Set it before use.
	Load func(name string, params ...string) error
	// HostFiles reports whether directories that the host shares (virtio-fs) may be mounted; nil: no. Set
	// it before use.
	HostFiles func() bool
	// Images pulls images; nil: the pod's policy has the guest pull none. Set it before use.
	Images layer.Images

	root string
	dir  beneath.Dir // the root
	sys  string      // sysfs
	// openVerity makes a verity device over a disk ("major:minor"); tests on hosts without
	// device-mapper put something else here.
	openVerity func(name string, p verity.Params, disk string) (verityDevice, string, error)

	mu      sync.Mutex
	mounts  map[string]*mounted // guarded by mu; by mount point
	serial  uint64              // guarded by mu; order of mounting
	devices map[string][]string // guarded by mu; sysfs directories of SCSI devices by container
	closed  bool                // guarded by mu
}

// mounted is one mount point.
type mounted struct {
	storage *agent.Storage
	serial  uint64
	users   map[string]bool // guarded by Manager.mu; container ids, "" for the sandbox
	ready   chan struct{}   // closed when mounting or unmounting has ended
	err     error           // of mounting; valid once ready is closed
	undo    undo.Stack
	verity  []*verityLayer // valid once ready is closed
}

// verityLayer is a mounted layer.
type verityLayer struct {
	rootHash string
	device   verityDevice
	pulled   bool // by the guest itself
}

// verityDevice is an open dm.Device.
type verityDevice interface {
	Corrupted() (bool, error)
	Close() error
}

// openDM opens a verity device with the kernel's device-mapper.
func openDM(name string, p verity.Params, disk string) (verityDevice, string, error) {
	d, err := dm.Open(name, p, disk)
	return d, d.Path, err
}

// New returns a Manager for mounts below root, an absolute path without symbolic links.
func New(root string) *Manager {
	return &Manager{
		root: root, dir: beneath.Dir(root), sys: "/sys", openVerity: openDM,
		mounts: map[string]*mounted{}, devices: map[string][]string{},
	}
}

// clean checks a path from the host; it does not look at files.
func (m *Manager) clean(path string) (string, error) { return m.dir.Clean(path) }

// Add makes the storages of a container available, in order; cid "" stands for the sandbox. If
// one fails, those that this call has made are undone. The error names the storage.
func (m *Manager) Add(ctx context.Context, cid string, storages []*agent.Storage) (err error) {
	if len(storages) > maxStorages {
		return fmt.Errorf("%d storages are more than %d: %w", len(storages), maxStorages, errdefs.ErrInvalidArgument)
	}
	var u undo.Stack
	defer u.RunOnError(&err)
	for i, s := range storages {
		if s == nil {
			return fmt.Errorf("storage %d is empty: %w", i, errdefs.ErrInvalidArgument)
		}
		fresh, err := m.acquire(ctx, cid, s)
		if err != nil {
			return fmt.Errorf("storage %d (driver %.40q, source %.80q) at %.200q: %w", i, s.GetDriver(), s.GetSource(),
				s.GetMountPoint(), err)
		}
		if fresh {
			u.Push("release "+s.GetMountPoint(), func(ctx context.Context) error {
				return m.release(ctx, cid, s.GetMountPoint())
			})
		}
	}
	return nil
}

// acquire makes cid a user of the storage and reports whether it was not one before.
func (m *Manager) acquire(ctx context.Context, cid string, s *agent.Storage) (bool, error) {
	point, err := m.clean(s.GetMountPoint())
	if err != nil {
		return false, err
	}
	for {
		mt, mine, err := m.claim(cid, point, s)
		if err != nil {
			return false, err
		}
		if mine {
			return true, m.settle(ctx, point, mt)
		}
		select {
		case <-mt.ready:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if fresh, ok := m.join(cid, point, mt); ok {
			return fresh, nil
		}
	}
}

// claim returns the mount at point; mine says that the caller has to make it.
func (m *Manager) claim(cid, point string, s *agent.Storage) (mt *mounted, mine bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, fmt.Errorf("storage is shut down: %w", errdefs.ErrFailedPrecondition)
	}
	if mt := m.mounts[point]; mt != nil {
		if !same(mt.storage, s) {
			return nil, false, fmt.Errorf("another storage is already mounted there: %w", errdefs.ErrAlreadyExists)
		}
		return mt, false, nil
	}
	m.serial++
	s = proto.CloneOf(s)
	mt = &mounted{storage: s, serial: m.serial, users: map[string]bool{cid: true}, ready: make(chan struct{})}
	if s.GetShared() {
		mt.users[""] = true
	}
	m.mounts[point] = mt
	return mt, true, nil
}

// join adds a user to a mount that was there already. It fails when the mount has gone meanwhile.
func (m *Manager) join(cid, point string, mt *mounted) (fresh, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mounts[point] != mt || mt.err != nil || len(mt.users) == 0 {
		return false, false
	}
	fresh = !mt.users[cid]
	mt.users[cid] = true
	return fresh, true
}

// settle makes a claimed mount, or forgets it.
func (m *Manager) settle(ctx context.Context, point string, mt *mounted) error {
	err := m.mount(ctx, point, mt)
	if err != nil {
		err = errors.Join(err, mt.undo.Run(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		mt.err = err
		delete(m.mounts, point)
	}
	close(mt.ready)
	return err
}

// same reports whether two requests for a mount point want the same thing.
func same(a, b *agent.Storage) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.Shared, b.Shared = false, false
	return proto.Equal(a, b)
}

// release removes a user of a mount point and undoes the mount if that was the last one. On an error the
// rest of the mount stays recorded, so that a later call continues.
func (m *Manager) release(ctx context.Context, cid, point string) error {
	m.mu.Lock()
	mt := m.mounts[point]
	if mt == nil || !mt.users[cid] {
		m.mu.Unlock()
		return nil
	}
	if len(mt.users) > 1 {
		delete(mt.users, cid)
		m.mu.Unlock()
		return nil
	}
	clear(mt.users) // new users wait until the release is done
	mt.ready = make(chan struct{})
	m.mu.Unlock()

	err := mt.undo.Run(ctx)

	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.mounts, point)
	} else {
		mt.users[cid] = true
	}
	close(mt.ready)
	return err
}

// Remove releases all mounts that a container uses, in reverse order. It returns the errors of those that
// it could not undo; the next call retries them.
func (m *Manager) Remove(ctx context.Context, cid string) error {
	var errs []error
	for _, point := range m.pointsOf(func(mt *mounted) bool { return mt.users[cid] }) {
		if err := m.release(ctx, cid, point); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(append(errs, m.removeDevices(cid))...)
}

// Shutdown undoes all mounts, used ones too, and refuses new ones.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	var errs []error
	for _, point := range m.pointsOf(func(*mounted) bool { return true }) {
		m.mu.Lock()
		mt := m.mounts[point]
		var users []string
		if mt != nil {
			for u := range mt.users {
				users = append(users, u)
			}
		}
		m.mu.Unlock()
		for _, u := range users {
			if err := m.release(ctx, u, point); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
			}
		}
	}
	return errors.Join(errs...)
}

// pointsOf lists mount points, the newest first.
func (m *Manager) pointsOf(want func(*mounted) bool) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var points []string
	for p, mt := range m.mounts {
		if want(mt) {
			points = append(points, p)
		}
	}
	slices.SortFunc(points, func(a, b string) int {
		return cmp.Compare(m.mounts[b].serial, m.mounts[a].serial)
	})
	return points
}

// Corrupted returns an error that names the layers of a container in which a block has failed
// verification so far. Call it when a container's process could not be started or died.
func (m *Manager) Corrupted(cid string) error {
	m.mu.Lock()
	layers := map[string][]*verityLayer{}
	for point, mt := range m.mounts {
		select {
		case <-mt.ready:
			if mt.users[cid] && mt.verity != nil {
				layers[point] = mt.verity
			}
		default: // still being mounted: not of a container that runs
		}
	}
	m.mu.Unlock()
	var errs []error
	for point, list := range layers {
		for _, l := range list {
			if err := l.check(point); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// check asks the kernel whether all blocks read so far were good.
func (l *verityLayer) check(point string) error {
	bad, err := l.device.Corrupted()
	if err != nil {
		return fmt.Errorf("layer %s at %s: %w", l.rootHash, point, err)
	}
	if bad {
		return &layer.CorruptError{RootHash: l.rootHash, MountPoint: point, Pulled: l.pulled}
	}
	return nil
}
