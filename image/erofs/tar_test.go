// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/worktest"
)

// listing shows a tree's names with just enough to tell them apart.
func listing(dir *node, prefix string) map[string]string {
	out := map[string]string{}
	for _, e := range dir.kids {
		p := prefix + e.name
		switch n := e.node; {
		case isWhiteout(n):
			out[p] = "whiteout"
		case n.isDir():
			out[p] = "dir"
			if len(n.xattrs) > 0 && n.xattrs[0].name == xattrOpaque {
				out[p] = "opaque dir"
			}
			for k, v := range listing(n, p+"/") {
				out[k] = v
			}
		case n.isReg():
			out[p] = "file"
		default:
			out[p] = "other"
		}
	}
	return out
}

func TestTarSemantics(t *testing.T) {
	f := func(p string) item { return item{path: p, kind: tar.TypeReg} }
	d := func(p string) item { return item{path: p, kind: tar.TypeDir, mode: 0o755} }
	l := func(p, to string) item { return item{path: p, kind: tar.TypeSymlink, target: to} }
	w := func(p string) item { return item{path: p, kind: 'w'} }
	for _, tc := range []struct {
		name  string
		items []item
		want  map[string]string
	}{
		{"makes directories that no entry describes", []item{f("a/b/c")}, map[string]string{
			"a": "dir", "a/b": "dir",
			"a/b/c": "file",
		}},
		{"accepts ./ and / in front", []item{f("./a"), f("/b")}, map[string]string{"a": "file", "b": "file"}},
		{
			"keeps .. beneath the root",
			[]item{f("../../x"), d("d"), f("d/../../y")},
			map[string]string{"x": "file", "d": "dir", "y": "file"},
		},
		{"a later file replaces an earlier one", []item{d("a"), f("a/x"), f("a")}, map[string]string{"a": "file"}},
		{"a later directory replaces a file", []item{f("a"), d("a"), f("a/x")}, map[string]string{"a": "dir", "a/x": "file"}},
		{
			"a directory named twice keeps its content",
			[]item{d("a"), f("a/x"), d("a")},
			map[string]string{"a": "dir", "a/x": "file"},
		},
		{
			"follows symbolic links of the layer",
			[]item{d("usr"), d("usr/lib"), l("lib", "usr/lib"), f("lib/x")},
			map[string]string{"usr": "dir", "usr/lib": "dir", "lib": "other", "usr/lib/x": "file"},
		},
		{
			"follows absolute links from the root",
			[]item{d("d"), l("d/l", "/t"), d("t"), f("d/l/x")},
			map[string]string{"d": "dir", "d/l": "other", "t": "dir", "t/x": "file"},
		},
		{
			"links cannot leave the root",
			[]item{l("up", "../../../etc"), f("up/passwd")},
			map[string]string{"up": "other", "etc": "dir", "etc/passwd": "file"},
		},
		{"a whiteout", []item{w("gone")}, map[string]string{"gone": "whiteout"}},
		{
			"a whiteout does not hide what its own layer brings",
			[]item{f("a"), w("a"), w("b"), f("b")},
			map[string]string{"a": "file", "b": "file"},
		},
		{
			"a directory over a whiteout is opaque",
			[]item{w("a"), d("a"), f("a/x")},
			map[string]string{"a": "opaque dir", "a/x": "file"},
		},
		{"a whiteout over a directory makes it opaque", []item{d("a"), w("a")}, map[string]string{"a": "opaque dir"}},
		{"AUFS leftovers are skipped", []item{f(".wh..wh.plnk"), f("a")}, map[string]string{"a": "file"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree, err := FromTar(t.Context(), bytes.NewReader(pack(t, tc.items)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, listing(tree.root, "")); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

// A directory that the tar does not mention looks the same from the tar as from a snapshot, where it
// has the time of the unpacking.
func TestDirectoriesThatNoEntryDescribes(t *testing.T) {
	lower, err := FromTar(t.Context(), bytes.NewReader(pack(t, []item{
		{
			path: "home", kind: tar.TypeDir, mode: 0o2710, uid: 7, gid: 8, mtime: 1000,
			xattrs: map[string]string{"user.a": "b"},
		},
	})), nil)
	if err != nil {
		t.Fatal(err)
	}
	items := []item{{path: "home/new/file", kind: tar.TypeReg, mode: 0o644, mtime: 5}}
	tree, err := FromTar(t.Context(), bytes.NewReader(pack(t, items)), nil, lower)
	if err != nil {
		t.Fatal(err)
	}
	viaTar := image(t, tree)
	needRoot(t)
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := os.MkdirAll(filepath.Join(home, "new"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unpack(dir, items); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chown(home, 7, 8), unix.Chmod(home, 0o2710), unix.Setxattr(home, "user.a", []byte("b"), 0), os.Chmod(dir, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(viaTar, fromDir(t, dir)) {
		t.Error("image differs between tar and directory")
	}
}

func TestBadTars(t *testing.T) {
	for _, tc := range []struct {
		name  string
		items []item
		want  string
	}{
		{"hard link to what is not there", []item{{path: "a", kind: tar.TypeLink, target: "b"}}, "not in this layer"},
		{
			"hard link to a directory",
			[]item{{path: "d", kind: tar.TypeDir}, {path: "a", kind: tar.TypeLink, target: "d"}},
			"is a directory",
		},
		{
			"a file as a directory",
			[]item{{path: "f", kind: tar.TypeReg}, {path: "f/x", kind: tar.TypeReg}},
			"not a directory",
		},
		{"links in a circle", []item{
			{path: "a", kind: tar.TypeSymlink, target: "b"},
			{path: "b", kind: tar.TypeSymlink, target: "a"},
			{path: "a/x", kind: tar.TypeReg},
		}, "too many symbolic links"},
		{"a name part that is too long", []item{{path: strings.Repeat("a", 256), kind: tar.TypeReg}}, "longer than 255"},
		{"a whiteout of nothing", []item{{path: ".wh.", kind: tar.TypeReg}}, "whiteout of nothing"},
		{
			"metacopy",
			[]item{{path: "a", kind: tar.TypeReg, xattrs: map[string]string{"trusted.overlay.metacopy": "x"}}},
			"metacopy",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := FromTar(t.Context(), bytes.NewReader(pack(t, tc.items)), nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("FromTar = %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestSparseFilesInATar(t *testing.T) {
	// An old GNU sparse file: 512 bytes of data at offset 8192 of 16384.
	var b bytes.Buffer
	h := make([]byte, 512)
	copy(h, "sparse")
	copy(h[100:], "0000644\x000000000\x000000000\x0000000001000\x0000000000000\x00        S")
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "00000020000\x0000000001000\x0000000040000\x0000000000000\x00")
	copy(h[483:], "00000040000\x00")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], []byte(octal6(sum)+"\x00 "))
	b.Write(h)
	b.Write(bytes.Repeat([]byte{'s'}, 512))
	b.Write(make([]byte, 1024))
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	tree, err := FromTar(t.Context(), bytes.NewReader(b.Bytes()), spool)
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, tree)
	want := append(append(make([]byte, 8192), bytes.Repeat([]byte{'s'}, 512)...), make([]byte, 16384-8192-512)...)
	if !bytes.Contains(img, want) {
		t.Error("image does not hold the file with its holes filled")
	}
}

func octal6(n int) string {
	const digits = "01234567"
	b := make([]byte, 6)
	for i := range b {
		b[5-i] = digits[n>>(3*i)&7]
	}
	return string(b)
}

// FuzzFromTar feeds arbitrary tars: each must end in an error or in an image of the
// announced size.
func FuzzFromTar(f *testing.F) {
	f.Add(pack(f, everything()[:16]))
	f.Add(pack(f, []item{
		{path: "a", kind: tar.TypeReg, data: []byte("x")},
		{path: "b", kind: tar.TypeLink, target: "a"},
		{path: "c", kind: 'w'},
	}))
	maxSparse = 1 << 20
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		spool, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer spool.Close()
		tree, err := FromTar(t.Context(), bytes.NewReader(b), spool)
		if err != nil {
			return
		}
		if tree.Size() > 1<<24 {
			return // a large file that is not all there
		}
		var out bytes.Buffer
		if err := tree.Write(t.Context(), &out); err != nil {
			return // contents cut off
		}
		if int64(out.Len()) != tree.Size() {
			t.Fatalf("image has %d bytes, Size() said %d", out.Len(), tree.Size())
		}
	})
}

// TestAnEntryForTheRootIsPassedOver: containerd gives the directory of a layer mode and owner of its own, whatever the
// archive says of the root.
func TestAnEntryForTheRootIsPassedOver(t *testing.T) {
	files := []item{{path: "f", kind: tar.TypeReg, mode: 0o644, mtime: 5}}
	root := item{path: "./", kind: tar.TypeDir, mode: 0o555, uid: 7, mtime: 9, xattrs: map[string]string{"user.a": "b"}}
	if !bytes.Equal(fromTar(t, pack(t, files)), fromTar(t, pack(t, append([]item{root}, files...)))) {
		t.Error("an entry for the root changes the image")
	}
	if _, err := FromTar(t.Context(), bytes.NewReader(pack(t, []item{{path: ".", kind: tar.TypeFifo}})), nil); err == nil {
		t.Error("a root that is a file is accepted")
	}
}
