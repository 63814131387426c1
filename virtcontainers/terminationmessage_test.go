// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/state"
)

func openPath(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := hostfs.OpenSource(name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // a test's
	return f
}

func TestATerminationMessageGoesToARegularFileOnly(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "message")
	write(t, name, []byte("what was there before"), 0o600)
	for _, bad := range []string{dir, "/dev/null"} {
		if err := writeTerminationMessage(openPath(t, bad), "words"); err == nil {
			t.Errorf("writeTerminationMessage(%s) succeeded", bad)
		}
	}
	f := openPath(t, name)
	if err := writeTerminationMessage(f, ""); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(name); string(b) != "what was there before" {
		t.Errorf("no words became %q", b)
	}
	if err := writeTerminationMessage(f, strings.Repeat("x", 5000)+"end"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(name); len(b) != maxTerminationMessage || !strings.HasSuffix(string(b), "xend") {
		t.Errorf("%d bytes, ending %q", len(b), b[max(len(b)-4, 0):])
	}
}

// Between creation and exit, the directory is swapped for a link to one of the host's: its file stays as it was.
func TestATerminationMessageStaysWithTheFileThatWasOpened(t *testing.T) {
	dir := t.TempDir()
	a, etc := filepath.Join(dir, "a"), filepath.Join(dir, "etc")
	write(t, filepath.Join(a, "crontab"), nil, 0o666)
	write(t, filepath.Join(etc, "crontab"), []byte("# the host's\n"), 0o600)
	f := openPath(t, filepath.Join(a, "crontab"))
	if err := errors.Join(os.Rename(a, a+".old"), os.Symlink(etc, a)); err != nil {
		t.Fatal(err)
	}
	if err := writeTerminationMessage(f, "* * * * * root of the guest\n"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(etc, "crontab")); err != nil || string(b) != "# the host's\n" {
		t.Errorf("the host's file is %q now, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(a+".old", "crontab")); err != nil || !strings.HasPrefix(string(b), "* * *") {
		t.Errorf("the message is %q, %v", b, err)
	}
}

func TestADiskThatIsThereIsMadeAnew(t *testing.T) {
	name := filepath.Join(t.TempDir(), state.DiskName)
	write(t, name, []byte("of an earlier VM"), 0o644)
	f, err := createDisk(openPath(t, filepath.Dir(name)), 32<<20)
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
	if _, err := createDisk(openPath(t, filepath.Dir(other)), 32<<20); err == nil {
		t.Error("a directory was taken for a disk")
	}
	bundle := t.TempDir()
	if _, err := state.New(bundle, state.Pod{Disks: []string{"/etc/passwd"}}); err == nil {
		t.Error("the journal takes any file for a disk")
	}
}
