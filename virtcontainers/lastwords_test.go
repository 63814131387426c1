// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/virtcontainers/state"
)

func TestLastWordsGoToARegularFileOnly(t *testing.T) {
	dir := t.TempDir()
	name, link := filepath.Join(dir, "message"), filepath.Join(dir, "link")
	write(t, name, []byte("what was there before"), 0o600)
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{link, dir, filepath.Join(dir, "none"), "/dev/null"} {
		if err := writeLastWords(bad, "words"); err == nil {
			t.Errorf("writeLastWords(%s) succeeded", bad)
		}
	}
	if err := writeLastWords(name, ""); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(name); string(b) != "what was there before" {
		t.Errorf("no words became %q", b)
	}
	if err := writeLastWords(name, strings.Repeat("x", 5000)+"end"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(name); len(b) != lastWordsMax || !strings.HasSuffix(string(b), "xend") {
		t.Errorf("%d bytes, ending %q", len(b), b[max(len(b)-4, 0):])
	}
}

func TestADiskThatIsThereIsMadeAnew(t *testing.T) {
	name := filepath.Join(t.TempDir(), state.DiskName)
	write(t, name, []byte("of an earlier VM"), 0o644)
	f, err := createDisk(name, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // a test's
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
	if _, err := createDisk(other, 32<<20); err == nil {
		t.Error("a directory was taken for a disk")
	}
	bundle := t.TempDir()
	if _, err := state.New(bundle, state.Pod{Disks: []string{"/etc/passwd"}}); err == nil {
		t.Error("the journal takes any file for a disk")
	}
}
