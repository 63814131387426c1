// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/storage"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// Common are the directories, beside the containers' bundles, that requests may name (section 6 of the
// protocol's description).
var Common = []string{contract.SharedName, contract.SandboxName, contract.ImageName, contract.LayersName}

// Place admits paths below the directories that the pod's containers share, and below the container's own root
// file system. The rest of a bundle is the agent's, and other containers' bundles are theirs. bundle is
// <base>/<id>; of the sandbox as such, which has none, it is <base>/.
func Place(p, bundle string) error {
	base, id := path.Split(bundle)
	rel, inside := strings.CutPrefix(p, base)
	first, rest, deep := strings.Cut(strings.TrimSuffix(rel, "/"), "/")
	switch {
	case !inside || path.Clean(p) != strings.TrimSuffix(p, "/"):
		return fmt.Errorf("%.200q is not a plain path below %s: copy it or send a storage for it: %w", p, base,
			errdefs.ErrInvalidArgument)
	case slices.Contains(Common, first):
		if !deep || rel == contract.FilesName || rel == contract.FilesName+"/" {
			return fmt.Errorf("%.200q is everybody's: %w", p, errdefs.ErrInvalidArgument)
		}
		return nil
	case id != "" && first == id && (rest == contract.RootfsName || strings.HasPrefix(rest, contract.RootfsName+"/")):
		return nil
	}
	return fmt.Errorf("%.200q is not the container's: %w", p, errdefs.ErrInvalidArgument)
}

// Storages admits the storages of a container, or of the sandbox: their mount points, and the directories
// that overlays and binds are made of.
func Storages(list []*agent.Storage, bundle string) error {
	base, _ := path.Split(bundle)
	for i, s := range list {
		paths, point := storage.Sources(s), s.GetMountPoint()
		// No mount point is refused where it is needed.
		if point != "" && !(storage.Shares(s) && path.Clean(point) == base+contract.FilesName) {
			paths = append(paths, point)
		}
		for _, p := range paths {
			if err := Place(p, bundle); err != nil {
				return fmt.Errorf("storage %d (driver %.40q) at %.200q: %w", i, s.GetDriver(), point, err)
			}
		}
	}
	return nil
}
