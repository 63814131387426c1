// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package scratch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// check looks at a new disk: empty, sparse, of its size, nobody else's, writable.
func check(t *testing.T, f *os.File, links uint64) {
	t.Helper()
	defer f.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Size != 32<<20 || st.Blocks != 0 || st.Mode&0o7777 != 0o600 || st.Nlink != links {
		t.Errorf("the disk has %d bytes in %d blocks, mode %o, %d names", st.Size, st.Blocks, st.Mode&0o7777, st.Nlink)
	}
	if _, err := f.WriteAt([]byte("x"), 31<<20); err != nil {
		t.Error(err)
	}
	if fl, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || fl&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %x, %v: want close-on-exec", fl, err)
	}
}

func TestAnUnnamedDiskLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a/b")
	f, err := Unnamed(dir, 32)
	must(t, err)
	check(t, f, 0)
	f, err = unlinked(dir)
	must(t, err)
	f, err = sized(f, 32)
	must(t, err)
	check(t, f, 0)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	if _, err := Unnamed(filepath.Join(dir, "file"), 32); err == nil {
		t.Error("a disk was made in a file")
	}
}

func TestANamedDiskTakesThePlaceOfAnOldOne(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		f, err := Named(dir, "disk", 32)
		must(t, err)
		check(t, f, 1)
	}
	// The target of a link with this name is neither removed nor written.
	other := filepath.Join(t.TempDir(), "other")
	must(t, os.WriteFile(other, []byte("other"), 0o600))
	must(t, errors.Join(os.Remove(filepath.Join(dir, "disk")), os.Symlink(other, filepath.Join(dir, "disk"))))
	f, err := Named(dir, "disk", 32)
	must(t, err)
	check(t, f, 1)
	if got, err := os.ReadFile(other); err != nil || string(got) != "other" {
		t.Errorf("the link's target has %q, %v", got, err)
	}
	must(t, os.Symlink(dir, filepath.Join(dir, "link")))
	if _, err := Named(filepath.Join(dir, "link"), "disk", 32); err == nil {
		t.Error("a disk was made behind a link")
	}
	for range 2 {
		must(t, Remove(filepath.Join(dir, "disk")))
	}
	if _, err := os.Lstat(filepath.Join(dir, "disk")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}
