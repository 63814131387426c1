// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// outside is a directory beside the manager's root with a file that nothing may reach.
func outside(t *testing.T, dirs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("of the guest"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestOverlayDirectoriesAreNotFollowed: a link in place of any of an overlay's directories, or on the way
// to it, is refused.
func TestOverlayDirectoriesAreNotFollowed(t *testing.T) {
	g := newGuest(t)
	out := outside(t, "u", "w", "l")
	at := func(p string) string { return filepath.Join(g.root, p) }
	for _, err := range []error{
		os.MkdirAll(at("v/l"), 0o755), os.MkdirAll(at("v/u"), 0o755), os.MkdirAll(at("v/w"), 0o755),
		os.Symlink(out, at("abs")), os.Symlink(filepath.Join("..", filepath.Base(filepath.Dir(out)), filepath.Base(out)),
			at("rel")),
		os.Symlink(out+"/u", at("u")), os.Symlink("v", at("inside")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, opts := range map[string][]string{
		"lower":               {"lowerdir=" + at("abs")},
		"lower, on the way":   {"lowerdir=" + at("abs/l")},
		"lower, relative":     {"lowerdir=" + at("rel")},
		"the second lower":    {"lowerdir=" + at("v/l") + ":" + at("abs")},
		"upper":               {"lowerdir=" + at("v/l"), "upperdir=" + at("u"), "workdir=" + at("v/w")},
		"upper, on the way":   {"lowerdir=" + at("v/l"), "upperdir=" + at("abs/u"), "workdir=" + at("v/w")},
		"work, on the way":    {"lowerdir=" + at("v/l"), "upperdir=" + at("v/u"), "workdir=" + at("abs/w")},
		"a link that is fine": {"lowerdir=" + at("inside/l")}, // it can be another one a moment later
	} {
		s := &agent.Storage{
			Driver: "overlayfs", Source: "overlay", Fstype: "overlay",
			MountPoint: at("merged"), Options: opts,
		}
		if err := g.Add(t.Context(), "c", []*agent.Storage{s}); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s is a link: Add = %v, want ELOOP", name, err)
		}
	}
	s := &agent.Storage{
		Driver: "overlayfs", Source: "overlay", Fstype: "overlay", MountPoint: at("merged"),
		Options:       []string{"lowerdir=" + at("v/l"), "upperdir=" + at("v/u"), "workdir=" + at("v/w")},
		DriverOptions: []string{contract.OptionCreateDirectory + at("abs/new")},
	}
	if err := g.Add(t.Context(), "c", []*agent.Storage{s}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a directory is made through a link: Add = %v, want a refusal", err)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 4 {
		t.Errorf("outside: %v, %v", left, err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("mounted: %v", m)
	}
}

// TestUnmountsWhatItMounted: the way to a mount point is moved and replaced by a link to another mount
// with the same name. The manager's own mount goes, wherever it is, and the other one stays, with the
// directories and files that have the names of what is to be removed.
func TestUnmountsWhatItMounted(t *testing.T) {
	g := newGuest(t)
	out := outside(t, "d", "b", "ro")
	at := func(p string) string { return filepath.Join(g.root, p) }
	if err := unix.Mount("other", out+"/d", "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(out+"/d", unix.MNT_DETACH) })
	if err := os.WriteFile(out+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := g.Add(t.Context(), "c", []*agent.Storage{
		{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=64k"}, MountPoint: at("vol/d")},
		{Driver: "bind", Source: at("vol/d"), MountPoint: at("vol/b")},
		{Driver: "bind", Source: at("vol/d"), Options: []string{"ro"}, MountPoint: at("vol/ro")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("vol/d/x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := &agent.Storage{
		Driver: "bind", Source: at("vol/d"), DriverOptions: []string{contract.OptionSubPath + "x"},
		MountPoint: at("vol/f"),
	}
	if err := g.Add(t.Context(), "c", []*agent.Storage{file}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(at("vol"), at("moved")), os.Symlink(out, at("vol"))); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(out+"/d", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("the other mount was unmounted (%v)", err)
	}
	for _, n := range []string{"b", "ro", "f", "secret"} {
		if _, err := os.Lstat(filepath.Join(out, n)); err != nil {
			t.Errorf("outside: %v", err)
		}
	}
}
