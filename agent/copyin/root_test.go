// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/testvm"
)

// A container's root file system is an overlay, and what runs there may have put anything at a name.
func TestAFileForARunningContainerIsThereWhenItIsComplete(t *testing.T) {
	testvm.Need(t, testvm.Root)
	d, err := os.MkdirTemp("/var/tmp", "coco-root-") // an overlay's upper directory cannot lie on an overlay
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(d)
	for _, n := range []string{"lower/dir", "fs", "work", "rootfs", "outside"} {
		if err := os.MkdirAll(filepath.Join(d, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d, "lower/dir/f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := "lowerdir=" + d + "/lower,upperdir=" + d + "/fs,workdir=" + d + "/work"
	base := filepath.Join(d, "rootfs")
	if err := unix.Mount("overlay", base, "overlay", 0, opts); err != nil {
		t.Skip("the kernel mounts no overlay there: ", err)
	}
	defer func() {
		if err := unix.Unmount(base, 0); err != nil {
			t.Error(err)
		}
	}()
	if out, err := exec.Command("ln", "-s", "../outside", base+"/away").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var r Root
	do := func(name string, mode uint32, data string, size int64, at int) error {
		return r.Copy(base, owner(&agent.CopyFileRequest{
			Path: base + "/" + name, FileMode: mode, Data: []byte(data), FileSize: size, Offset: int64(at), MtimeNs: 1e18,
		}))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(do("dir/f", unix.S_IFREG|0o4711, "abc", 6, 0))
	if b, err := os.ReadFile(base + "/dir/f"); err != nil || string(b) != "old" {
		t.Errorf("before the last piece: %q, %v", b, err)
	}
	must(do("dir/f", unix.S_IFREG|0o4711, "def", 6, 3))
	b, err := os.ReadFile(base + "/dir/f")
	st, serr := os.Stat(base + "/dir/f")
	if err != nil || serr != nil || string(b) != "abcdef" || st.Mode() != 0o711|os.ModeSetuid ||
		st.ModTime().UnixNano() != 1e18 {
		t.Errorf("dir/f = %q, %v, %v, %v", b, st, err, serr)
	}
	must(do("new", unix.S_IFDIR|0o700, "", 0, 0))
	must(do("new/l", unix.S_IFLNK|0o777, "/anywhere", 9, 0))
	must(do("new/l", unix.S_IFREG|0o600, "", 0, 0)) // a file replaces a link, and does not follow it
	for _, refused := range []struct{ name, want string }{
		{"away/f", "symbolic link"},
		{"dir", "a directory of that name"},
		{"none/f", "does not exist"},
		{"../outside/f", "simplest form"},
	} {
		err := do(refused.name, unix.S_IFREG|0o600, "x", 1, 0)
		if err == nil || !strings.Contains(err.Error(), refused.want) {
			t.Errorf("%s: %v, want %q", refused.name, err, refused.want)
		}
	}
	left, err := os.ReadDir(filepath.Join(d, "outside"))
	if err != nil || len(left) > 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
	if names, _ := filepath.Glob(base + "/.*"); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}
