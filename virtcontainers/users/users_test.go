// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package users

import (
	"os"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func none(uint32) error { return nil }

func TestEachOwnerGetsAnIdOfItsOwn(t *testing.T) {
	dir, r := t.TempDir(), Range{1000, 20}
	var mu sync.Mutex
	taken := map[uint32]string{}
	var wg sync.WaitGroup
	for i := range r.Count {
		wg.Go(func() {
			owner := "/bundle/" + string(rune('a'+i))
			id, err := Take(dir, r, owner, none)
			if err != nil {
				t.Errorf("Take(%s) = %v", owner, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if other, ok := taken[id]; ok || id < r.First || id >= r.First+r.Count {
				t.Errorf("Take(%s) = %d, which %q has", owner, id, other)
			}
			taken[id] = owner
		})
	}
	wg.Wait()
	if id, err := Take(dir, r, "/late", none); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Take() of a full range = %d, %v", id, err)
	}
	for id, owner := range taken {
		if err := Free(dir, id, "/other"); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(link(dir, id)); err != nil {
			t.Errorf("Free() by another owner took the id: %v", err)
		}
		for range 2 {
			if err := Free(dir, id, owner); err != nil {
				t.Error(err)
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestWhatIsTriedIsWrittenDownBefore(t *testing.T) {
	dir, r := t.TempDir(), Range{7, 2}
	first, err := Take(dir, r, "/a", none)
	if err != nil {
		t.Fatal(err)
	}
	var recorded []uint32
	second, err := Take(dir, r, "/b", func(id uint32) error {
		if _, err := os.Lstat(link(dir, id)); (err == nil) != (id == first) {
			t.Errorf("id %d is recorded when its link: %v", id, err)
		}
		recorded = append(recorded, id)
		return nil
	})
	if err != nil || second == first || recorded[len(recorded)-1] != second {
		t.Errorf("Take() = %d, %v, recorded %d", second, err, recorded)
	}
}

func TestARangeThatIsNoneIsRefused(t *testing.T) {
	for _, r := range []Range{{}, {0, 5}, {5, 0}, {1<<32 - 1, 2}} {
		if id, err := Take(t.TempDir(), r, "/a", none); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Take(%v) = %d, %v", r, id, err)
		}
	}
}

func TestAllIdsOfAnOwnerAreGivenBack(t *testing.T) {
	dir, r := t.TempDir(), Range{1000, 20}
	for _, owner := range []string{"/gone", "/gone", "/other"} {
		if _, err := Take(dir, r, owner, none); err != nil {
			t.Fatal(err)
		}
	}
	if err := FreeAll(dir, "/gone"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// An id that is given to another owner is taken at every moment, and only its owner can give it.
func TestAnIDChangesItsOwner(t *testing.T) {
	dir := t.TempDir()
	id, err := Take(dir, Range{1000, 1}, "/a", func(uint32) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := Give(dir, id, "/x", "/b"); err == nil {
		t.Error("one who does not have it gave it")
	}
	if err := Give(dir, id, "/a", "/b"); err != nil {
		t.Fatal(err)
	}
	if err := Free(dir, id, "/a"); err != nil { // not its any more
		t.Fatal(err)
	}
	if _, err := Take(dir, Range{1000, 1}, "/c", func(uint32) error { return nil }); err == nil {
		t.Error("it was free")
	}
	if err := Free(dir, id, "/b"); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(dir, Range{1000, 1}, "/c", func(uint32) error { return nil }); err != nil {
		t.Error(err)
	}
}
