// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/state"
)

func write(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, mode),
		os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func openPath(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := hostfs.OpenSource(name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // a test's
	return f
}

func TestADiskThatIsThereIsMadeAnew(t *testing.T) {
	name := filepath.Join(t.TempDir(), state.DiskName)
	write(t, name, []byte("of an earlier VM"), 0o644)
	f, err := create(openPath(t, filepath.Dir(name)), 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() != 32<<20 || st.Mode().Perm() != 0o600 {
		t.Errorf("the disk is %v, %v", st, err)
	}
	b := make([]byte, 16)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != strings.Repeat("\x00", 16) {
		t.Errorf("it holds %q, %v", b, err)
	}
	// Something else under that name is not taken for a disk.
	other := filepath.Join(t.TempDir(), state.DiskName)
	write(t, filepath.Join(other, "file"), nil, 0o600)
	if _, err := create(openPath(t, filepath.Dir(other)), 32<<20); err == nil {
		t.Error("a directory was taken for a disk")
	}
	bundle := t.TempDir()
	if _, err := state.New(bundle, state.Pod{Disks: []string{"/etc/passwd"}}); err == nil {
		t.Error("the journal takes any file for a disk")
	}
}
