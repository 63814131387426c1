// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/shim/bundle"
)

// adapt changes a specification where it counts on the bundle's place. It refuses containers of a pod.
func (o options) adapt(spec *specs.Spec, dir string, id string, role bundle.Role) error {
	if role.Sandbox || role.PodID != id {
		return fmt.Errorf("container %s is of the pod of %s, but each has a VM of its own here: run it without a pod: %w",
			id, role.PodID, errdefs.ErrNotImplemented)
	}
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(dir, spec.Root.Path)
	}
	return nil
}

// netns is the path of the network namespace that a specification names, or "".
func netns(spec *specs.Spec) string {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			return n.Path
		}
	}
	return ""
}
