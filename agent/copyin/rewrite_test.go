// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
)

// TestRewrite holds that a file that a container is mounted with gets other content, and stays the same file.
func TestRewrite(t *testing.T) {
	base := t.TempDir()
	r := New(base)
	own := "c-" + strings.Repeat("0", 16) + "-resolv.conf"
	file := func(name, data string) *agent.CopyFileRequest {
		return owner(&agent.CopyFileRequest{
			Path: base + "/" + name, FileMode: unix.S_IFREG | 0o644, Data: []byte(data), FileSize: int64(len(data)),
			DirMode: 0o755,
		})
	}
	for _, name := range []string{own, "other", "v/key"} {
		if err := r.Copy(file(name, "before, and long")); err != nil {
			t.Fatal(err)
		}
	}
	r.Use("c", []string{base + "/" + own, base + "/other", base + "/v"})
	held, err := os.Open(base + "/" + own) // as a bind mount holds it
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	removal := file(own, "")
	removal.Remove = true
	for what, req := range map[string]*agent.CopyFileRequest{
		"a removal": removal, "a file of all containers": file("other", "x"), "a file in a volume": file("v/key", "x"),
		"a path through it": file(own+"/../other", "x"),
	} {
		if r.Copies("c", req) {
			t.Errorf("%s is taken for the container's own", what)
		}
	}
	if r.Copies("d", file(own, "x")) || !r.Copies("c", file(own, "x")) {
		t.Error("the container's own file is another's, or nobody's")
	}
	if err := r.Rewrite(file(own, "after")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64)
	if n, err := held.Read(got); err != nil || string(got[:n]) != "after" {
		t.Errorf("who holds the file reads %q, %v", got[:n], err)
	}
	part := file(own, "x")
	part.FileSize = 2
	link := file(own, "other")
	link.FileMode = unix.S_IFLNK | 0o777
	for _, req := range []*agent.CopyFileRequest{part, link, file("none", "x")} {
		if err := r.Rewrite(req); err == nil {
			t.Errorf("%v: no error", req)
		}
	}
	if err := os.Remove(base + "/" + own); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", base+"/"+own); err != nil {
		t.Fatal(err)
	}
	if err := r.Rewrite(file(own, "x")); err == nil {
		t.Error("a link is followed")
	}
}
