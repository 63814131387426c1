// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// ShmSize is that of the pod's /dev/shm in bytes: of the tmpfs that the engine has made for it on the host, or what all
// engines make by default.
func ShmSize(s *specs.Spec) uint64 {
	size := uint64(64 << 20)
	for _, m := range s.Mounts {
		if path.Clean(m.Destination) != "/dev/shm" || !request.IsBind(m) {
			continue
		}
		f, err := hostvolume.Open(volume.Named, m.Source) // its size is all that is looked at
		if err != nil {
			continue
		}
		if shape, err := hostvolume.ShapeOf(f); err == nil && shape.Tmpfs && shape.Bytes > 0 {
			size = shape.Bytes
		}
		_ = f.Close() // nothing was written
	}
	return size
}

const maxResolvConf = 64 << 10

// AsksEngine says whether the only container's resolv.conf names the resolver that its engine has in the network
// namespace.
func AsksEngine(s *specs.Spec) (bool, error) {
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool {
		return request.IsBind(m) && path.Clean(m.Destination) == "/etc/resolv.conf"
	})
	if i < 0 {
		return false, nil
	}
	text, err := hostvolume.ReadNamed(s.Mounts[i].Source, maxResolvConf)
	if err != nil {
		return false, fmt.Errorf("resolv.conf: %w", err)
	}
	return slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
		return strings.Join(strings.Fields(line), " ") == contract.ResolverLine
	}), nil
}
