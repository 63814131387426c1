// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hostvolume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/plan/volume"
)

func TestEngineRootsFollowTheBundle(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bundle, work := dir+"/state/io.containerd.runtime.v2.task/k8s.io/c", dir+"/root/io.containerd.runtime.v2.task/k8s.io/c"
	if err := errors.Join(os.MkdirAll(bundle, 0o700), os.MkdirAll(work, 0o700),
		os.Symlink(work, bundle+"/work")); err != nil {
		t.Fatal(err)
	}
	want := []volume.Root{
		{Name: dir + "/state", Real: dir + "/state"},
		{Name: dir + "/root", Real: dir + "/root"},
		{Name: "/usr", Real: "/usr"},
	}
	if d := cmp.Diff(want, EngineRoots(bundle, []string{"/usr", "/nowhere", "/"})); d != "" {
		t.Errorf("EngineRoots() (-want +got):\n%s", d)
	}
	if got := EngineRoots(dir, nil); got != nil {
		t.Errorf("of a bundle elsewhere EngineRoots() = %v", got)
	}
}
