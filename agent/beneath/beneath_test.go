// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package beneath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestPaths(t *testing.T) {
	top := t.TempDir()
	d := Dir(filepath.Join(top, "base"))
	at := func(p string) string { return string(d) + "/" + p }
	for _, err := range []error{
		os.MkdirAll(at("a/b"), 0o755), os.Mkdir(filepath.Join(top, "out"), 0o755), os.WriteFile(at("f"), []byte("x"), 0o600),
		os.Symlink("../out", at("l")), os.Symlink("a", at("in")), unix.Mkfifo(at("p"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for p, ok := range map[string]bool{
		at("a"): true, at("a/b"): true, at("a/b/"): true, at("f"): true, at("p"): true,
		at("l"): false, at("l/x"): false, at("in"): false, at("in/b"): false, at("none"): false, at("f/x"): false,
		at("a/../f"): false, at("./a"): false, at("a//b"): false, string(d): false, string(d) + "/": false, "a": false,
		"": false, "/": false, at("a\x00"): false,
		string(d) + "x/a": false,
	} {
		f, err := d.Open(p)
		if (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("Open(%q) = %v, want ok %v", p, err, ok)
		}
		if err == nil {
			_ = f.Close()
		}
	}
	for i, p := range []string{at("n/m"), at("n"), at("a/b")} {
		dir, made, err := d.Make(p, 0o755)
		if err != nil || made != (i == 0) {
			t.Errorf("Make(%s) = %v, %v; want new %v", p, made, err, i == 0)
			continue
		}
		_ = dir.Close()
	}
	for _, p := range []string{at("l/x"), at("l"), at("in/x"), at("f/x"), "/etc/x"} {
		if _, _, err := d.Make(p, 0o755); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Make(%s) = %v", p, err)
		}
	}
	if err := errors.Join(d.RemoveDir(at("l/x")), d.RemoveDir(at("l")), d.RemoveFile(at("in/b")), d.RemoveDir(at("a")),
		d.RemoveDir(at("none")), d.RemoveFile(at("a"))); err != nil {
		t.Errorf("what is something else is left alone: %v", err)
	}
	if left, err := os.ReadDir(at("")); err != nil || len(left) != 6 {
		t.Errorf("left %v, %v", left, err)
	}
	if out, err := os.ReadDir(filepath.Join(top, "out")); err != nil || len(out) != 0 {
		t.Errorf("outside: %v, %v", out, err)
	}
	if err := errors.Join(d.RemoveDir(at("a/b")), d.RemoveFile(at("l"))); err != nil {
		t.Error(err)
	}
}

// TestReopenTakesOnlyFiles: a pipe is not opened, which would wait, and a file that was exchanged after it was
// found is still the one that was found.
func TestReopenTakesOnlyFiles(t *testing.T) {
	d := Dir(t.TempDir())
	at := func(p string) string { return string(d) + "/" + p }
	if err := errors.Join(unix.Mkfifo(at("p"), 0o600), os.WriteFile(at("f"), []byte("mine"), 0o600),
		os.WriteFile(at("g"), []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{at("p"), string(d) + "/f"} {
		f, err := d.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // two
		if p == at("p") {
			if _, err := Reopen(f); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("Reopen of a pipe = %v", err)
			}
			continue
		}
		if err := os.Rename(at("g"), at("f")); err != nil {
			t.Fatal(err)
		}
		r, err := Reopen(f)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 9)
		if n, _ := r.Read(b); string(b[:n]) != "mine" {
			t.Errorf("read %q", b[:n])
		}
		_ = r.Close()
		_ = f.Close()
		if _, err := Reopen(f); err == nil {
			t.Error("a closed descriptor is reopened")
		}
	}
}
