// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestMakeAndRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundles", "c1")
	if err := Make(dir); err != nil {
		t.Fatal(err)
	}
	if err := Make(dir); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second bundle in the same place = %v, want %v", err, errdefs.ErrAlreadyExists)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the bundle after Remove = %v", err)
	}
}

// TestABundleThatFailsIsNotLeft: the path of its root file system is too long for the kernel, its own is not. A bundle
// that is left would refuse each further container of that id.
func TestABundleThatFailsIsNotLeft(t *testing.T) {
	parent := t.TempDir()
	for len(parent) < unix.PathMax-400 {
		parent = filepath.Join(parent, strings.Repeat("d", 200))
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, strings.Repeat("a", 200))
	dir = filepath.Join(dir, strings.Repeat("b", unix.PathMax-len(dir)-4))
	if err := Make(dir); err == nil {
		t.Fatal("a path that is too long was made")
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory after an error = %v", err)
	}
}
