// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package layers finds or builds the image layers of a root file system on this host, while the VM boots.
//
// A Request says where the root file system is: the mounts of a snapshotter, or a directory. Package plan/rootfs
// decides which directories are its layers; a Cache builds a file of each, or finds the one that an earlier container
// has needed. A Search does that beside the boot: the VM starts with layers that are there in time, and gets others
// later.
package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/plan/rootfs"
)

// Request describes a root file system on the host.
type Request struct {
	Mounts   []rootfs.Mount // the snapshotter's
	Root     string         // the directory, when there are no mounts
	ReadOnly bool
}

// Of says where the root file system of a container is: in the mounts, else where its specification says, relative to
// its bundle.
func Of(mounts []rootfs.Mount, s *specs.Spec, bundle string) (Request, error) {
	out := Request{Mounts: mounts}
	if s == nil || s.Root == nil {
		if len(mounts) == 0 {
			return out, fmt.Errorf("the specification has no root and no mounts of a root file system were given: %w",
				errdefs.ErrInvalidArgument)
		}
		return out, nil
	}
	out.ReadOnly, out.Root = s.Root.Readonly, s.Root.Path
	if !filepath.IsAbs(out.Root) {
		out.Root = filepath.Join(bundle, out.Root)
	}
	return out, nil
}

// Upper returns the upper directory of the snapshot that containerd made for a container, or "" where there is
// none.
func (r Request) Upper() (string, error) {
	if len(r.Mounts) == 0 {
		return "", nil
	}
	plan, err := rootfs.Resolve(rootfs.Request{Mounts: r.Mounts})
	return plan.Upper, err
}

// Cache is the node's layers.
type Cache struct {
	dir     string
	mostMiB uint64
}

// NewCache makes a Cache with the directory and the bound of the size from a configuration.
func NewCache(c configs.Runtime) Cache { return Cache{c.LayerCache, c.LayerCacheSizeMiB} }

// Tidy removes layers that no snapshot needs any more, and layers above the bound of the cache's size. It runs at the
// end of a pod. The end of the next pod removes the layers that this one could not.
func (h Cache) Tidy(ctx context.Context) error {
	cache, err := layer.New(h.dir)
	if err != nil {
		return err
	}
	return cache.Trim(ctx, cache.Bound(h.mostMiB), false, func(layer.Entry) {})
}

// Open returns the layers, opened and complete, the topmost first. It may take long and ends with ctx. The caller
// closes them.
func (h Cache) Open(ctx context.Context, req Request) (_ []*layer.Layer, err error) {
	sources, err := sources(req)
	if err != nil {
		return nil, err
	}
	cache, err := layer.New(h.dir)
	if err != nil {
		return nil, err
	}
	var out []*layer.Layer
	for _, s := range sources {
		l, err := cache.Open(ctx, s)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("layer %s: %w", s, err), Close(out))
		}
		out = append(out, l)
	}
	return out, nil
}

// Plan says which directories the root file system consists of.
func (r Request) Plan() (rootfs.Plan, error) {
	sr := rootfs.Request{Mounts: r.Mounts, Root: r.Root, ReadOnly: r.ReadOnly}
	if len(sr.Mounts) == 0 {
		var err error
		if sr.HostMounts, err = mountsAt(r.Root); err != nil {
			return rootfs.Plan{}, err
		}
	}
	return rootfs.Resolve(sr)
}

// sources lists the layers of a root file system, the topmost first.
func sources(req Request) ([]layer.Source, error) {
	plan, err := req.Plan()
	if err != nil {
		return nil, err
	}
	empty, err := emptyUpper(plan)
	if err != nil {
		return nil, err
	}
	return plan.Layers(empty), nil
}

// mountsAt returns the mounts at a root file system's directory.
func mountsAt(root string) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(filepath.Clean(root)))
	if err != nil {
		return nil, fmt.Errorf("mounts at %s: %w", root, err)
	}
	return mounts, nil
}

// emptyUpper reports whether a plan's upper directory holds nothing.
func emptyUpper(p rootfs.Plan) (bool, error) {
	if p.Upper == "" {
		return true, nil
	}
	d, err := os.Open(p.Upper)
	if err != nil {
		return false, fmt.Errorf("upper directory: %w", err)
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// Close closes layers.
func Close(layers []*layer.Layer) error {
	var errs []error
	for _, l := range layers {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
