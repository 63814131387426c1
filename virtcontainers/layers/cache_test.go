// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/plan/rootfs"
)

func TestAnUpperDirectoryWithContentIsALayer(t *testing.T) {
	upper := t.TempDir()
	lower := layer.Source{Kind: layer.Dir, Path: "/l"}
	req := Request{Mounts: []rootfs.Mount{{
		Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l", "upperdir=" + upper, "workdir=/w"},
	}}}
	got, err := sources(req)
	if d := cmp.Diff([]layer.Source{lower}, got); err != nil || d != "" {
		t.Errorf("sources() with an empty upper directory: %v (-want +got):\n%s", err, d)
	}
	if err := os.WriteFile(filepath.Join(upper, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = sources(req)
	want := []layer.Source{{Kind: layer.Dir, Path: upper, Private: true}, lower}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("sources() with a file in the upper directory: %v (-want +got):\n%s", err, d)
	}
	if _, err := emptyUpper(rootfs.Plan{Upper: "/does/not/exist"}); err == nil ||
		!strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("emptyUpper() of a missing directory = %v", err)
	}
}

func TestMountsOfThisProcess(t *testing.T) {
	got, err := mountsAt("/proc/")
	if err != nil || len(got) == 0 || got[0].FSType != "proc" {
		t.Errorf("mountsAt(/proc/) = %v, %v", got, err)
	}
}
