// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/agent/layer"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

func init() { register(contract.DriverPull, driver{mount: (*Manager).mountPull}) }

// Fetch fetches the images among storages that the guest pulls and that are not mounted yet, so that Add waits for no
// registry.
func (m *Manager) Fetch(ctx context.Context, storages []*agent.Storage) error {
	for _, s := range storages {
		m.mu.Lock()
		mt := m.mounts[s.GetMountPoint()]
		m.mu.Unlock()
		if s.GetDriver() != contract.DriverPull || mt != nil || m.Images == nil {
			continue
		}
		if err := m.Images.Fetch(ctx, s.GetSource()); err != nil {
			return err
		}
	}
	return nil
}

// mountPull takes an image that was fetched and mounts its layers, each opened with its root hash, as the layers of the
// host are. The mount stays for the pod's life: a container that is created again does not fetch again.
func (m *Manager) mountPull(_ context.Context, point string, mt *mounted, opts options) (err error) {
	source := mt.storage.GetSource()
	switch {
	case m.Images == nil:
		return fmt.Errorf("the pod's policy has no image that the guest pulls: %w", errdefs.ErrFailedPrecondition)
	case opts.flags != unix.MS_RDONLY || len(opts.data) > 0 || mt.storage.GetFstype() != "overlay":
		return invalid(fmt.Errorf("an image that the guest pulls is mounted as overlay with the option ro alone"))
	}
	layers, err := m.Images.Take(source)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range layers {
			err = errors.Join(err, l.File.Close())
		}
	}()
	if m.Load != nil {
		if err := m.Load("loop"); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	var at []string
	for i, l := range layers {
		to := point + ".layers/" + strconv.Itoa(i)
		name := "pulled-" + strconv.FormatUint(mt.serial, 10) + "-" + strconv.Itoa(i)
		if err := m.mountPulled(to, name, mt, l); err != nil {
			return err
		}
		at = append(at, to)
	}
	return m.stack(point, mt, at)
}

// mountPulled opens a layer with its root hash and mounts it.
func (m *Manager) mountPulled(at, name string, mt *mounted, l layer.Pulled) error {
	loop, number, err := disk.Loop(l.File)
	if err != nil {
		return err
	}
	defer loop.Close() // the verity device has it then
	return m.openLayer(at, name, number, mt, l.Params, unix.MS_RDONLY)
}

// stack mounts layers as one file system, read-only. An overlay without an upper directory has two layers at least.
func (m *Manager) stack(point string, mt *mounted, layers []string) error {
	var dirs opened
	defer dirs.close()
	fs := beneath.FileSystem{Type: "overlay", Source: "overlay", Flags: unix.MS_RDONLY}
	for _, l := range layers {
		fs.Data = append(fs.Data, "lowerdir+="+dirs.path(m, l))
	}
	if dirs.err != nil {
		return dirs.err
	}
	if len(layers) > 1 {
		return m.mountAt(point, mt, fs)
	}
	mount, err := beneath.Clone(dirs.files[0], unix.MS_RDONLY)
	if err != nil {
		return err
	}
	return m.at(point, mt, mount)
}
