// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/plan/rootfs"
)

// hostLayers is the Layers of this host: package plan/rootfs decides, the cache builds.
type hostLayers struct {
	dir     string
	mostMiB uint64
}

// NewLayers makes Layers with the cache directory and the bound of the cache's size from a configuration.
func NewLayers(c configs.Runtime) Layers { return hostLayers{c.LayerCache, c.LayerCacheSizeMiB} }

// Tidy removes layers that no snapshot needs any more, and layers above the bound of the cache's size. It runs at the
// end of a pod. The end of the next pod removes the layers that this one could not.
func (h hostLayers) Tidy(ctx context.Context) error {
	cache, err := layer.New(h.dir)
	if err != nil {
		return err
	}
	return cache.Trim(ctx, cache.Bound(h.mostMiB), false, func(layer.Entry) {})
}

// Open implements Layers.
func (h hostLayers) Open(ctx context.Context, req LayerRequest) (_ []*layer.Layer, err error) {
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
			return nil, errors.Join(fmt.Errorf("layer %s: %w", s, err), closeLayers(out))
		}
		out = append(out, l)
	}
	return out, nil
}

// sources lists the layers of a root file system, the topmost first.
func sources(req LayerRequest) ([]layer.Source, error) {
	sr := rootfs.Request{Mounts: storageMounts(req.Mounts), Root: req.Root, ReadOnly: req.ReadOnly}
	if len(sr.Mounts) == 0 {
		var err error
		if sr.HostMounts, err = mountsAt(req.Root); err != nil {
			return nil, err
		}
	}
	plan, err := rootfs.Resolve(sr)
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
