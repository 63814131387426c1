// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hostvolume

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coco-shim/coco/plan/volume"
)

// Roots looks at the directories that the configuration names. One that does not exist is none: nobody but root
// can make it, or Open refuses what is in it.
func Roots(dirs []string) []volume.Root {
	var out []volume.Root
	for _, d := range dirs {
		if real, err := filepath.EvalSymlinks(d); err == nil && real != "/" {
			out = append(out, volume.Root{Name: filepath.Clean(d), Real: real})
		}
	}
	return out
}

// EngineRoots are the directories of containerd that the bundle of a container of its is below, and the others that
// the configuration names. containerd makes the bundle as STATE/PLUGIN/NAMESPACE/ID, with a link "work" to
// ROOT/PLUGIN/NAMESPACE/ID.
func EngineRoots(bundle string, dirs []string) []volume.Root {
	var own []string
	places := []string{bundle}
	if work, err := os.Readlink(filepath.Join(bundle, "work")); err == nil {
		places = append(places, work)
	}
	for _, p := range places {
		plugin := filepath.Dir(filepath.Dir(p))
		if filepath.IsAbs(p) && strings.HasPrefix(filepath.Base(plugin), "io.containerd.") {
			own = append(own, filepath.Dir(plugin))
		}
	}
	return Roots(slices.Concat(own, dirs))
}
