// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// UsesHostPS is whether the engine that wrote a specification looks a container's pids up with the host's ps, as
// docker top and nerdctl top do. Docker mounts the root file system itself and so names it by an absolute path, as does
// ctr run --rootfs. nerdctl repeats its labels as annotations.
func UsesHostPS(spec *specs.Spec) bool {
	if spec.Root != nil && filepath.IsAbs(spec.Root.Path) {
		return true
	}
	for key := range spec.Annotations {
		if strings.HasPrefix(key, "nerdctl/") {
			return true
		}
	}
	return false
}
