// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/tests/harness"
)

// Snapshots that containerd unpacked have the root hashes of the registry's tars: nodes and authors of policies
// agree.
func TestSnapshotsHaveTheRootHashesOfTheirTars(t *testing.T) {
	for _, version := range []string{"1.6", primary} {
		t.Run(version, func(t *testing.T) {
			d := daemon(t, version)
			file := filepath.Join(t.TempDir(), "image.tar")
			if r := d.Ctr(t.Context(), "images", "export", file, harness.LayeredImage); r.Code != 0 {
				t.Fatalf("export: %s", r.Stderr)
			}
			image, err := tarball.ImageFromPath(file, nil)
			if err != nil {
				t.Fatal(err)
			}
			layers, err := image.Layers()
			if err != nil {
				t.Fatal(err)
			}
			have := snapshotHashes(t, d)
			var lower []*erofs.Tree
			for i, l := range layers {
				r, err := l.Uncompressed()
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				tree, err := erofs.FromTar(t.Context(), bytes.NewReader(b), nil, lower...)
				if err != nil {
					t.Fatal(err)
				}
				if h := rootHash(t, tree); have[h] == "" {
					t.Errorf("layer %d has root hash %s; the snapshots have %v", i, h, have)
				}
				lower = append([]*erofs.Tree{tree}, lower...)
			}
			if len(layers) < 3 {
				t.Errorf("the image has %d layers, want several", len(layers))
			}
		})
	}
}

// rootHash writes a tree to nowhere in particular and returns its root hash.
func rootHash(t *testing.T, tree *erofs.Tree) string {
	t.Helper()
	w, err := verity.NewWriter(nowhere{}, tree.Size(), verity.Salt)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := tree.Write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	p, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return p.Hex()
}

type nowhere struct{}

func (nowhere) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

// snapshotHashes builds the layers of all of a daemon's overlay snapshots.
func snapshotHashes(t *testing.T, d *harness.Daemon) map[string]string {
	t.Helper()
	cache, err := layer.New(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join(d.Dir, "root/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, dir := range dirs {
		l, err := cache.Open(t.Context(), layer.Source{Kind: layer.Dir, Path: dir})
		if errors.Is(err, fs.ErrNotExist) {
			continue // of a container that another test has removed
		}
		if err != nil {
			t.Fatal(err)
		}
		out[l.Hex()] = dir
		l.Close()
	}
	return out
}
