// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// layerOf makes a tree of entries "path=content", "path/" and "path->target".
func layerOf(t *testing.T, lower []*Tree, entries ...string) *Tree {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e, Typeflag: tar.TypeDir, Mode: 0o755}
		text := ""
		if path, target, ok := strings.Cut(e, "->"); ok {
			h.Name, h.Linkname, h.Typeflag = path, target, tar.TypeSymlink
		} else if path, content, ok := strings.Cut(e, "="); ok {
			h.Name, h.Typeflag, h.Size, text = path, tar.TypeReg, int64(len(content)), content
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree, err := FromTar(t.Context(), bytes.NewReader(b.Bytes()), f, lower...)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestFilesOfMergedLayers(t *testing.T) {
	bottom := layerOf(t, nil, "etc/", "etc/passwd=old", "etc/group=g", "gone/", "gone/f=f", "opq/", "opq/low=low", "d/",
		"d/1=1", "d/2=2",
		"abs->/etc", "up->../../etc/group", "loop->loop", "file=f")
	top := layerOf(t, []*Tree{bottom}, "etc/passwd=new", ".wh.gone=", "opq/", "opq/.wh..wh..opq=", "opq/high=high",
		"d/.wh.1=", "d/3=3",
		"d/s/", "d/s/4=4", "d/l->1")
	layers := []*Tree{top, bottom}
	for name, want := range map[string]string{
		"etc/passwd": "new", "/etc/group": "g", "abs/passwd": "new", "up": "g", "opq/high": "high", "./etc/../etc/group": "g",
	} {
		if b, err := ReadFile(layers, name, 10); err != nil || string(b) != want {
			t.Errorf("ReadFile(%s) = %q, %v, want %q", name, b, err, want)
		}
	}
	for _, name := range []string{"gone/f", "opq/low", "d/1", "none", "file/x", "etc/none"} {
		if b, err := ReadFile(layers, name, 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadFile(%s) = %q, %v, want that it does not exist", name, b, err)
		}
	}
	for _, name := range []string{"loop", "etc"} {
		if b, err := ReadFile(layers, name, 10); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadFile(%s) = %q, %v, want another error", name, b, err)
		}
	}
	if _, err := ReadFile(layers, "etc/passwd", 2); err == nil {
		t.Error("a file of 3 bytes is read as one of 2")
	}
	var got []string
	visit := func(name string, r io.Reader) error {
		b, err := io.ReadAll(r)
		got = append(got, name+"="+string(b))
		return err
	}
	if err := errors.Join(WalkFiles(layers, "/d", visit), WalkFiles(layers, "gone", visit)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"2=2", "3=3", "s/4=4"}, got); diff != "" {
		t.Errorf("WalkFiles: %s", diff)
	}
}
