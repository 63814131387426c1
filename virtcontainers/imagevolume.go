// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"fmt"
	"slices"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/layers"
)

// imageVolume gives the VM the layers of an image that the engine has mounted as a volume, as it gets those of a
// container's root file system: any number of files of any size, verified block by block.
func (p *Pod) imageVolume(ctx context.Context, v *podVolume) (err error) {
	list, err := p.opts.Host.Layers.Open(ctx, layers.Request{Root: v.source, ReadOnly: true})
	if err != nil {
		return fmt.Errorf("image volume %s: %w", v.source, err)
	}
	if len(list) == 0 {
		return fmt.Errorf("image volume %s has no layers", v.source)
	}
	var u undo.Stack
	defer u.RunOnError(&err)
	attached, err := p.disks.Attach(ctx, list, &u)
	if err != nil {
		return err
	}
	p.undo.Adopt(&u) // they go with the VM
	all := rootfs.Image(v.guest, attached)
	v.layers, v.storage = all[:len(all)-1], all[len(all)-1]
	return nil
}

// joined puts two lists of storages together, of which some may be in both: a layer that an image and a root file
// system have in common.
func joined(a, b []*agent.Storage) []*agent.Storage {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.ContainsFunc(a, func(o *agent.Storage) bool { return o.GetMountPoint() == s.GetMountPoint() }) {
			out = append(out, s)
		}
	}
	return out
}
