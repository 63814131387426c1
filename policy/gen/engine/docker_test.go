// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/resolve"
)

// TestTheRootHashOfDockersLayer compares the constant with a layer as Docker 26 makes it (tests/docker has a real one).
func TestTheRootHashOfDockersLayer(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: ".dockerenv"},
		{Name: "dev", Typeflag: tar.TypeDir},
		{Name: "dev/console"},
		{Name: "etc", Typeflag: tar.TypeDir},
		{Name: "etc/hostname"},
		{Name: "etc/hosts"},
		{Name: "etc/mtab", Typeflag: tar.TypeSymlink, Linkname: "/proc/mounts", Mode: 0o777},
		{Name: "etc/resolv.conf"},
	} {
		h.ModTime = time.Now()
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree, err := erofs.FromTar(t.Context(), bytes.NewReader(b.Bytes()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if got, err := resolve.RootHash(t.Context(), tree); err != nil || got != dockerLayer {
		t.Errorf("RootHash() = %s, %v, want %s", got, err, dockerLayer)
	}
}

// TestAPolicyOfADockerContainerHasItsLayer above those of the image.
func TestAPolicyOfADockerContainerHasItsLayer(t *testing.T) {
	in := input(t)
	in.Container.Docker = true
	p, _, err := Policy(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Containers[0].Image.Layers; len(got) != 2 || got[0] != dockerLayer || got[1] != root {
		t.Errorf("the layers are %q", got)
	}
}
