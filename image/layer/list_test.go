// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"os"
	"sync"
	"testing"
	"time"
)

func hashes(list []Entry) map[string]Entry {
	out := map[string]Entry{}
	for _, e := range list {
		out[e.RootHash] = e
	}
	return out
}

func TestTheCacheIsListedAndKeptWithinItsBound(t *testing.T) {
	c := newCache(t)
	var names []string
	var paths []string
	for i := range 4 {
		dir := snapshot(t, i+1, 100+i)
		l := open(t, c, Source{Kind: Dir, Path: dir})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		names, paths = append(names, l.Hex()), append(paths, dir)
		keys := left(t, c, dirKeys)
		for _, k := range keys { // used one after the other, the newest key last
			if st, err := os.Stat(c.path(dirKeys, k)); err != nil || time.Since(st.ModTime()) < time.Hour {
				past := time.Now().Add(time.Duration(i-100) * time.Hour)
				if err := os.Chtimes(c.path(dirKeys, k), past, past); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(c.path(dirBlobs, l.Hex()), past, past); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	used := open(t, c, Source{Kind: Dir, Path: paths[1]})
	defer used.Close() // closed below
	if err := os.RemoveAll(paths[3]); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) != 4 {
		t.Fatalf("List = %v, %v", list, err)
	}
	by := hashes(list)
	if e := by[names[0]]; list[0].RootHash != names[0] || len(e.Sources) != 1 || e.Sources[0] != paths[0] ||
		e.Size == 0 || e.InUse {
		t.Errorf("the layer that was used longest ago: %+v, first of %v", e, list)
	}
	if !by[names[1]].InUse || by[names[3]].Needed() {
		t.Errorf("one is in use, one has lost its snapshot: %+v", by)
	}
	var gone []string
	note := func(e Entry) { gone = append(gone, e.RootHash) }
	for _, dry := range []bool{true, false} {
		gone = nil
		if err := c.Trim(t.Context(), 1<<40, dry, note); err != nil || len(gone) != 1 || gone[0] != names[3] {
			t.Errorf("dry %v: %v, %v; want the one without a snapshot", dry, gone, err)
		}
	}
	gone = nil
	if err := c.Trim(t.Context(), by[names[1]].Size+by[names[2]].Size, false, note); err != nil || len(gone) != 1 ||
		gone[0] != names[0] {
		t.Errorf("over the bound: %v, %v; want the one that was used longest ago", gone, err)
	}
	gone = nil
	if err := c.Trim(t.Context(), 0, false, note); err != nil || len(gone) != 1 || gone[0] != names[2] {
		t.Errorf("to nothing: %v, %v; want all but the one in use", gone, err)
	}
	if l := open(t, c, Source{Kind: Dir, Path: paths[0]}); l.Hex() != names[0] { // built again
		t.Errorf("root hash %s, want %s", l.Hex(), names[0])
	}
}

// Shims open layers while others list and trim: none fails, and none gets another layer than its own.
func TestTrimmingDisturbsNobody(t *testing.T) {
	c := newCache(t)
	dir := snapshot(t, 1, 100)
	want := open(t, c, Source{Kind: Dir, Path: dir}).Hex()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				l, err := c.Open(t.Context(), Source{Kind: Dir, Path: dir})
				if err != nil {
					t.Error(err)
					return
				}
				if l.Hex() != want {
					t.Errorf("root hash %s, want %s", l.Hex(), want)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				if err := c.Trim(t.Context(), 0, false, func(Entry) {}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
