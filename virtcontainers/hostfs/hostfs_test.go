// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hostfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func realDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	return dir
}

func TestASourceMayBeALinkOfRoots(t *testing.T) {
	dir := realDir(t)
	must(t, os.MkdirAll(dir+"/d/e", 0o755))
	must(t, os.WriteFile(dir+"/d/e/f", nil, 0o600))
	for name, to := range map[string]string{
		"l": "d", "abs": dir + "/d/e", "d/up": "../d/e", "chain": "l/up", "round": "round",
		"back": "abs/../e",
	} {
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	e, err := os.Stat(dir + "/d/e")
	must(t, err)
	try := func(name string) error {
		t.Helper()
		f, err := OpenSource(dir+name, false)
		if err != nil {
			return err
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || !os.SameFile(st, e) {
			t.Errorf("OpenSource(%s, false) is another file, %v", name, err)
		}
		return nil
	}
	linked := []string{"/l/e", "/abs", "/d/up", "/chain", "/l/up", "/l/../d/e", "/back", "/abs/../e"}
	for _, name := range append(linked, "/d/e", "/d/../d/e/") { // root's links are followed, for engines of pods too
		must(t, try(name))
	}
	for _, name := range []string{"/none", "/l/none"} {
		for _, links := range []bool{true, false} {
			if _, err := OpenSource(dir+name, links); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("of what is not there OpenSource(%s, %v) says %v", name, links, err)
			}
		}
	}
	if err := try("/round"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("of a link to itself: %v", err)
	}
	if err := try("/d/e/f/x"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	for _, links := range []bool{true, false} {
		if f, err := OpenSource("/proc/self/cwd", links); err == nil {
			t.Errorf("OpenSource(/proc/self/cwd, %v) = %s: a magic link was followed", links, f.Name())
		}
	}
	if os.Getuid() != 0 {
		t.Skip("gives directories to others: run as root")
	}
	must(t, os.Chmod(dir, 0o777|os.ModeSticky))
	must(t, try("/abs"))
	must(t, os.Lchown(dir+"/abs", 7, 7)) // a user's own link in a sticky directory, as /tmp is
	refused := func(what string, names ...string) {
		t.Helper()
		for _, name := range names {
			if err := try(name); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "is a symbolic link") {
				t.Errorf("%s: OpenSource(%s, false) = %v, want a refusal of the link", what, name, err)
			}
			f, err := OpenSource(dir+name, true)
			must(t, err)
			must(t, f.Close())
		}
	}
	refused("a user's link", "/abs")
	must(t, os.Chmod(dir, 0o777))
	refused("a directory that all may write to", "/l/e", "/d/up", "/chain")
	must(t, errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 7, 0)))
	refused("a user's directory", "/l/e", "/d/up", "/chain") // root's links, but who has put them there?
	must(t, try("/d/e"))
}

func TestOwnedDirectoriesAreRootsAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("gives directories to others: run as root")
	}
	dir := realDir(t)
	for name, change := range map[string]func(d string) error{
		"":                              func(string) error { return nil },
		"others than root may write":    func(d string) error { return os.Chmod(d, 0o777) },
		"others than root may write to": func(d string) error { return errors.Join(os.Chown(d, 0, 7), os.Chmod(d, 0o770)) },
		"is user 7's":                   func(d string) error { return os.Chown(d, 7, 0) },
		"too many levels": func(d string) error {
			return errors.Join(os.Rename(d, d+".old"), os.Symlink(d+".old", d))
		},
	} {
		d := filepath.Join(dir, strings.ReplaceAll("d"+name, " ", "-"))
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.WriteFile(d+"/f", nil, 0o666))
		must(t, change(d))
		f, err := OpenOwned(d + "/f")
		if name == "" {
			if err != nil {
				t.Fatalf("OpenOwned() = %v", err)
			}
			must(t, f.Close())
			continue
		}
		if err == nil || !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("OpenOwned() = %v, want %q", err, name)
		}
	}
	d := filepath.Join(dir, "sticky")
	must(t, os.MkdirAll(d+"/mine", 0o755))
	must(t, os.Chmod(d, 0o777|os.ModeSticky))
	if f, err := OpenOwned(d + "/mine/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("through a sticky directory: %v, %v", f, err)
	}
	if _, err := OpenOwned(d + "/mine/x/y"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below what is not there: %v", err)
	}
	for _, bad := range []string{"relative", "/a/../b", "", "/a//b"} {
		if _, err := OpenOwned(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("OpenOwned(%q) = %v", bad, err)
		}
	}
}

func TestBeneathNothingLeadsOut(t *testing.T) {
	dir := realDir(t)
	must(t, os.MkdirAll(dir+"/in/d", 0o755))
	must(t, os.WriteFile(dir+"/out", nil, 0o600))
	must(t, os.Symlink("../out", dir+"/in/link"))
	must(t, os.Symlink("..", dir+"/in/up"))
	must(t, os.Symlink("d", dir+"/in/inner"))
	root, err := OpenSource(dir+"/in", false)
	must(t, err)
	defer root.Close()
	for _, rel := range []string{"link", "up/out", "../out", "/etc/passwd", "inner/x", "d/../../out"} {
		if f, err := Beneath(root, rel, unix.O_RDONLY, true); err == nil {
			t.Errorf("Beneath(%q) = %s", rel, f.Name())
		}
	}
	f, err := Beneath(root, "", unix.O_RDONLY|unix.O_DIRECTORY, false)
	must(t, err)
	must(t, f.Close())
}

func TestReopenNeitherWaitsNorTouches(t *testing.T) {
	dir := realDir(t)
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	for _, name := range []string{dir + "/fifo", "/dev/null"} {
		at, err := OpenSource(name, false)
		must(t, err)
		if f, err := Reopen(at, os.O_RDWR); err == nil {
			t.Errorf("Reopen(%s) = %v", name, f)
		}
		must(t, at.Close())
	}
}
