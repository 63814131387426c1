// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
)

// A link changes its target in one step, and what is removed goes with everything below it, but
// nothing that a link leads to.
func TestSwapAndRemove(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	r := New(base)
	remove := func(name string) error { return r.Copy(&agent.CopyFileRequest{Path: name, Remove: true}) }
	if err := remove(base + "/none"); err != nil {
		t.Errorf("remove before anything was copied: %v", err)
	}
	link := func(target string) {
		t.Helper()
		if err := r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/v/..data", FileMode: unix.S_IFLNK | 0o777,
			Data: []byte(target), FileSize: int64(len(target)), DirMode: 0o755,
		})); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) {
		t.Helper()
		if err := r.Copy(owner(&agent.CopyFileRequest{
			Path: base + name, FileMode: unix.S_IFREG | 0o600, Data: []byte("x"),
			FileSize: 1, DirMode: 0o755,
		})); err != nil {
			t.Fatal(err)
		}
	}
	file("/v/..1/key")
	file("/v/..2/key")
	link("..1")
	// A reader finds the link at any moment of its change.
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		missed := 0
		for {
			select {
			case <-stop:
				done <- missed
				return
			default:
				if _, err := os.ReadFile(filepath.Join(base, "v/..data/key")); err != nil {
					missed++
				}
			}
		}
	}()
	for range 200 {
		link("..2")
		link("..1")
	}
	close(stop)
	if missed := <-done; missed != 0 {
		t.Errorf("%d times there was nothing behind the link", missed)
	}
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// by a container
	for _, err := range []error{os.Remove(base + "/v/..data"), os.Symlink("../../../outside", base+"/v/..data")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/v/..data", "/v/..1", "/v/..1"} {
		if err := remove(base + name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	got, _ := filepath.Glob(base + "/v/.*")
	if d := cmp.Diff([]string{base + "/v/..2"}, got); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what the link led to: %v", err)
	}
	for _, bad := range []string{base, base + "/", base + "/../outside", base + "/v/../..", "/etc", ""} {
		if err := remove(bad); err == nil {
			t.Errorf("remove %q succeeded", bad)
		}
	}
}
