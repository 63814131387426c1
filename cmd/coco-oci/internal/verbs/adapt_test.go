// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/shim/bundle"
)

func TestContainersOfPodsAreRefused(t *testing.T) {
	spec := &specs.Spec{Root: &specs.Root{Path: "rootfs"}}
	for _, role := range []bundle.Role{{PodID: "infra"}, {Sandbox: true, PodID: "c"}} {
		if err := (options{}).adapt(spec, "/b", "c", role); !errors.Is(err, errdefs.ErrNotImplemented) {
			t.Errorf("%+v: %v, want ErrNotImplemented", role, err)
		}
	}
	if err := (options{}).adapt(spec, "/b", "c", bundle.Role{PodID: "c"}); err != nil || spec.Root.Path != "/b/rootfs" {
		t.Errorf("a container of its own: %v, root %s", err, spec.Root.Path)
	}
}
