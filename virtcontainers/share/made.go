// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"fmt"
	"os"

	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/copytree"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// made is a file that an engine makes for every container, such as its resolv.conf.
type made struct {
	volume.Bind
	guest  string
	mirror copytree.Mirror
}

// add notes such a file, which is copied.
func (m *Mounts) add(b volume.Bind, guest string) *made {
	f := &made{Bind: b, guest: guest}
	m.made = append(m.made, f)
	return f
}

func (f *made) sync(ctx context.Context, source *os.File, s *Set) error {
	return f.mirror.Sync(ctx, source, s.target(f.guest), copytree.Whole)
}

// Renew copies such files again that the engine has changed since the container was created, and before its start.
func (s *Set) Renew(ctx context.Context, m *Mounts) error {
	if !s.o.Guest.Features().Rewrites { // a guest with a policy, or one of a TEE: it takes each file once
		return nil
	}
	for _, f := range m.made {
		if err := s.renew(ctx, f); err != nil {
			return fmt.Errorf("mount %s: %w", f.Destination, err)
		}
	}
	return nil
}

func (s *Set) renew(ctx context.Context, f *made) error {
	source, err := hostvolume.Open(f.Origin, f.Source)
	if err != nil {
		return err
	}
	defer source.Close()
	return f.sync(ctx, source, s)
}
