// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/containerd/errdefs"
)

// Common are the directories, beside the containers' bundles, that requests may name (section 6 of the
// protocol's description).
var Common = []string{contract.SharedName, contract.SandboxName, contract.ImageName, contract.LayersName}

// Place admits paths below what the pod's containers have in common, and below the container's own root
// file system. The rest of a bundle is the agent's, and other containers' bundles are theirs. bundle is
// <base>/<id>; of the sandbox as such, which has none, it is <base>/.
func Place(p, bundle string) error {
	base, id := path.Split(bundle)
	rel, inside := strings.CutPrefix(p, base)
	first, rest, deep := strings.Cut(strings.TrimSuffix(rel, "/"), "/")
	switch {
	case !inside || path.Clean(p) != strings.TrimSuffix(p, "/"):
		return fmt.Errorf("%.200q is not a plain path below %s: copy it or send a storage for it: %w", p, base, errdefs.ErrInvalidArgument)
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
		paths, point := Sources(s), s.GetMountPoint()
		// No mount point is refused where it is needed.
		if point != "" && !(s.GetDriver() == contract.DriverVirtioFS && path.Clean(point) == base+contract.FilesName) {
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

// Sources lists the directories of the guest that a storage is made of.
func Sources(s *agent.Storage) []string {
	switch s.GetDriver() {
	case contract.DriverBind, contract.DriverWatchableBind:
		return []string{s.GetSource()}
	case contract.DriverOverlay:
	default:
		return nil
	}
	var out []string
	for _, list := range s.GetOptions() {
		for o := range strings.SplitSeq(list, ",") {
			name, value, _ := strings.Cut(o, "=")
			switch name {
			case "lowerdir":
				out = append(out, strings.Split(value, ":")...)
			case "upperdir", "workdir":
				out = append(out, value)
			}
		}
	}
	for _, o := range s.GetDriverOptions() {
		if dir, ok := strings.CutPrefix(o, contract.OptionCreateDirectory); ok {
			out = append(out, dir)
		}
	}
	return out
}
