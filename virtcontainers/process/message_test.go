// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
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
