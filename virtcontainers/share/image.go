// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"fmt"

	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/virtcontainers/layers"
)

// imageVolume gives the VM the layers of an image that the engine has mounted as a volume, as it gets those of a
// container's root file system: any number of files of any size, verified block by block.
func (s *Set) imageVolume(ctx context.Context, v *shared) (err error) {
	list, err := s.o.Layers.Open(ctx, layers.Request{Root: v.source, ReadOnly: true})
	if err != nil {
		return fmt.Errorf("image volume %s: %w", v.source, err)
	}
	if len(list) == 0 {
		return fmt.Errorf("image volume %s has no layers", v.source)
	}
	var u undo.Stack
	defer u.RunOnError(&err)
	attached, err := s.o.Disks.Attach(ctx, list, &u)
	if err != nil {
		return err
	}
	s.o.Undo.Adopt(&u) // they go with the VM
	all := rootfs.Image(v.guest, attached)
	v.layers, v.storage = all[:len(all)-1], all[len(all)-1]
	return nil
}
