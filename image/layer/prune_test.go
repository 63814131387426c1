// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"errors"
	"os"
	"testing"

	"github.com/coco-shim/coco/image/verity"
)

func TestPruneRemovesWhatNobodyNeeds(t *testing.T) {
	c := newCache(t)
	kept, gone, used := snapshot(t, 1, 100), snapshot(t, 2, 200), snapshot(t, 3, 300)
	for _, dir := range []string{kept, gone} {
		if err := open(t, c, Source{Kind: Dir, Path: dir}).Close(); err != nil {
			t.Fatal(err)
		}
	}
	inUse, err := c.Open(t.Context(), Source{Kind: Dir, Path: used})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{gone, used} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	p, err := c.Prune(t.Context())
	if err != nil || p.Layers != 1 || p.Bytes == 0 {
		t.Errorf("Prune = %+v, %v, want one layer", p, err)
	}
	if err := verity.Verify(t.Context(), inUse.File, inUse.Params); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.path(dirBlobs, inUse.Hex())); err != nil {
		t.Errorf("a layer in use was removed: %v", err)
	}
	inUse.Close()
	if p, err := c.Prune(t.Context()); err != nil || p.Layers != 1 {
		t.Errorf("second Prune = %+v, %v, want one layer", p, err)
	}
	if b, k, l := left(t, c, dirBlobs), left(t, c, dirKeys), left(t, c, dirLocks); len(b) != 1 ||
		len(k) != 1 || len(l) != 1 {
		t.Errorf("left are blobs %v, keys %v, locks %v, want one of each", b, k, l)
	}
	open(t, c, Source{Kind: Dir, Path: kept})
}

func TestABuildMakesRoomByRemovingDeadLayers(t *testing.T) {
	c, dead := newCache(t), snapshot(t, 1, 100)
	l, err := c.Open(t.Context(), Source{Kind: Dir, Path: dead})
	if err != nil {
		t.Fatal(err)
	}
	name := c.path(dirBlobs, l.Hex())
	if err := errors.Join(l.Close(), os.RemoveAll(dead)); err != nil {
		t.Fatal(err)
	}
	open(t, c, Source{Kind: Dir, Path: snapshot(t, 2, 200)})
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer of a snapshot that is gone is still there (%v)", err)
	}
}
