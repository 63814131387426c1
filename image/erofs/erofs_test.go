// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/coco-shim/coco/internal/testvm"
)

// everything has one of each kind of thing that a layer can hold.
func everything() []item {
	big := bytes.Repeat([]byte("0123456789abcdef"), 700)
	items := []item{
		{path: "bin", kind: tar.TypeDir, mode: 0o755, mtime: 1000000000},
		{path: "bin/sh", kind: tar.TypeReg, mode: 0o4755, mtime: 1, data: big},
		{path: "bin/ash", kind: tar.TypeLink, target: "bin/sh"},
		{path: "bin/ping", kind: tar.TypeReg, mode: 0o755, mtime: 2, data: []byte("ping"), xattrs: map[string]string{
			"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"user.note":           "hello",
		}},
		{path: "dev", kind: tar.TypeDir, mode: 0o755, mtime: 3},
		{path: "dev/null", kind: tar.TypeChar, mode: 0o666, mtime: 4, major: 1, minor: 3},
		{path: "dev/sdzz", kind: tar.TypeBlock, mode: 0o660, gid: 6, mtime: 5, major: 259, minor: 300000},
		{path: "dev/pipe", kind: tar.TypeFifo, mode: 0o600, mtime: 6},
		{path: "!first", kind: tar.TypeReg, mode: 0o600, mtime: 7},
		{path: "-second", kind: tar.TypeReg, mode: 0o600, mtime: 8, data: bytes.Repeat([]byte{7}, BlockSize)},
		{path: "link", kind: tar.TypeSymlink, target: "bin/sh", mtime: 9, mode: 0o777},
		{path: "long", kind: tar.TypeSymlink, target: strings.Repeat("x/", 2040), mtime: 10, mode: 0o777},
		{path: "opaque", kind: tar.TypeDir, mode: 0o700, uid: 1000, gid: 4294967294, mtime: 11},
		{path: "opaque", kind: 'o'},
		{path: "gone", kind: 'w'},
		{path: "tmp", kind: tar.TypeDir, mode: 0o1777, mtime: 4000000000},
		{path: "many", kind: tar.TypeDir, mode: 0o755, mtime: 12},
		{path: "ü\nname", kind: tar.TypeReg, mode: 0o644, mtime: 13, data: []byte{0}},
	}
	for i := range 700 {
		items = append(items, item{
			path: fmt.Sprintf("many/file-with-a-longer-name-%d", i), kind: tar.TypeReg, mode: 0o644,
			mtime: int64(i), data: bytes.Repeat([]byte{byte(i)}, i*13),
		})
	}
	return items
}

// The digest pins the format: a change of it changes every root hash, and needs a new
// layer.FormatVersion.
func TestImageOfAKnownTarIsKnown(t *testing.T) {
	const want = "ba26440a4d9c02d1355a95d5f585e4e772ac96250846e23da4ea62d5e1079285"
	sum := sha256.Sum256(fromTar(t, pack(t, everything())))
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("image digest = %s, want %s", got, want)
	}
}

func TestTarStreamAndDirectoryGiveTheSameImage(t *testing.T) {
	b := pack(t, everything())
	viaFile := fromTar(t, b)
	if !bytes.Equal(viaFile, fromTarStream(t, b)) {
		t.Error("image differs between a tar file and a tar stream")
	}
	needRoot(t)
	dir := t.TempDir()
	if err := unpack(dir, everything()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(viaFile, fromDir(t, dir)) {
		t.Error("image differs between tar and directory")
	}
}

// mountImage mounts an image on the host's own EROFS and returns the mount point.
func mountImage(t *testing.T, img []byte) string {
	t.Helper()
	needRoot(t)
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, img, 0o600); err != nil {
		t.Fatal(err)
	}
	point := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "erofs", "-o", "ro,loop", file,
		point).CombinedOutput(); err != nil {
		if b, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(b), "erofs") {
			t.Skip("needs erofs in the host's kernel")
		}
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return point
}

func TestKernelSeesTheTreeAsItWas(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unpack(dir, everything()); err != nil {
		t.Fatal(err)
	}
	point := mountImage(t, fromDir(t, dir))
	if diff := cmp.Diff(describeTree(t, dir), describeTree(t, point)); diff != "" {
		t.Errorf("directory and mounted image differ (-want +got):\n%s", diff)
	}
}

func fsck(t testing.TB, img []byte) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		return // an extra check where the tool is there
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, img, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(context.Background(), "fsck.erofs", file).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, out)
	}
}

func TestFsckAcceptsTheImage(t *testing.T) {
	testvm.Need(t, testvm.FsckErofs)
	fsck(t, fromTar(t, pack(t, everything())))
	fsck(t, fromTar(t, pack(t, nil)))
}

// An independent reader finds the same names and contents.
func TestAnotherReaderAgrees(t *testing.T) {
	fsys, err := goerofs.Open(bytes.NewReader(fromTar(t, pack(t, everything()))))
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range everything() {
		if it.kind != tar.TypeReg {
			continue
		}
		got, err := fs.ReadFile(fsys, it.path)
		if err != nil || !bytes.Equal(got, it.data) {
			t.Fatalf("%s: %d bytes, error %v, want %d bytes", it.path, len(got), err, len(it.data))
		}
	}
}

func TestRandomTreesSurvive(t *testing.T) {
	root := os.Geteuid() == 0
	rapid.Check(t, func(rt *rapid.T) {
		items := drawItems(rt)
		b := pack(t, items)
		img := fromTar(t, b)
		if !bytes.Equal(img, fromTarStream(t, b)) {
			rt.Fatal("tar file and stream differ")
		}
		fsck(t, img)
		if !root {
			return
		}
		dir, err := os.MkdirTemp(t.TempDir(), "tree")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := unpack(dir, items); err != nil {
			rt.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(img, fromDir(t, dir)) {
			rt.Fatalf("tar and directory differ for %+v", items)
		}
	})
}

// drawItems makes a consistent layer: parents before children, links to what is there.
func drawItems(t *rapid.T) []item {
	dirs := []string{""}
	var files []string
	seen := map[string]bool{}
	var items []item
	name := rapid.StringMatching(`[!-.0-9A-Za-z_]{1,12}|[a-z]{200,255}`)
	kinds := rapid.SampledFrom([]byte{
		tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo,
		tar.TypeChar, tar.TypeBlock, tar.TypeLink, 'w', 'o',
	})
	for range rapid.IntRange(0, 40).Draw(t, "count") {
		n := name.Draw(t, "name")
		if n == "." || n == ".." || strings.HasPrefix(n, ".wh.") {
			continue
		}
		p := filepath.Join(rapid.SampledFrom(dirs).Draw(t, "dir"), n)
		if seen[p] {
			continue
		}
		it := item{
			path: p, kind: kinds.Draw(t, "kind"), mode: rapid.Int64Range(0, 0o7777).Draw(t, "mode"),
			uid: rapid.IntRange(0, 70000).Draw(t, "uid"), gid: rapid.IntRange(0, 70000).Draw(t, "gid"),
			mtime: rapid.Int64Range(0, 1<<33).Draw(t, "mtime"),
		}
		switch it.kind {
		case tar.TypeDir:
			dirs = append(dirs, p)
		case tar.TypeReg:
			size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(1900, 4200), rapid.IntRange(4090, 20000)).Draw(t, "size")
			it.data = bytes.Repeat([]byte(n), size/len(n)+1)[:size]
			files = append(files, p)
		case tar.TypeSymlink:
			it.target, it.mode = rapid.StringMatching(`[a-z/.]{1,60}`).Draw(t, "target"), 0o777
		case tar.TypeChar, tar.TypeBlock:
			it.major, it.minor = rapid.Int64Range(1, 4095).Draw(t, "major"), rapid.Int64Range(0, 1<<20-1).Draw(t, "minor")
		case tar.TypeLink:
			if len(files) == 0 {
				continue
			}
			it = item{path: p, kind: tar.TypeLink, target: rapid.SampledFrom(files).Draw(t, "link")}
		case 'o':
			if len(dirs) == 1 {
				continue
			}
			it = item{path: rapid.SampledFrom(dirs[1:]).Draw(t, "opaque"), kind: 'o'}
		}
		if slices.Contains([]byte{tar.TypeReg, tar.TypeDir}, it.kind) && rapid.Bool().Draw(t, "xattr") {
			it.xattrs = map[string]string{
				"user." + rapid.StringMatching(`[a-z.]{1,40}`).Draw(t, "attr"): rapid.StringN(0, 200, 300).Draw(t, "value"),
			}
			for k := range it.xattrs {
				if xattrFate(k, false) != keep {
					it.xattrs = nil
				}
			}
		}
		if it.kind != 'o' {
			seen[p] = true
		}
		items = append(items, it)
	}
	return items
}

func TestWhatUnpackingInventsIsLeftOut(t *testing.T) {
	needRoot(t)
	plain, marked := t.TempDir(), t.TempDir()
	for _, dir := range []string{plain, marked} {
		if err := unpack(dir, []item{
			{path: "d", kind: tar.TypeDir, mode: 0o755},
			{path: "d/f", kind: tar.TypeReg, mode: 0o644},
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid",
		"user.containerd.x", "security.selinux",
	} {
		if err := unix.Setxattr(filepath.Join(marked, "d"), name, []byte("x"), 0); err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
	if err := unix.Mknod(filepath.Join(marked, "socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fromDir(t, plain), fromDir(t, marked)) {
		t.Error("marks of the unpacking host changed the image")
	}
}

// user.overlay.* are an overlay's marks only where it is mounted with userxattr; an image may have them for its own.
func TestUserOverlayAttributesAreTheImages(t *testing.T) {
	for name, want := range map[string][2]fate{
		"user.overlay.opaque": {keep, opaque}, "user.overlay.redirect": {keep, special},
		"user.overlay.metacopy": {keep, special},
		"user.overlay.origin":   {keep, drop}, "user.overlayx": {keep, keep}, "trusted.overlay.opaque": {opaque, opaque},
		"trusted.overlay.redirect": {special, special},
	} {
		if got := [2]fate{xattrFate(name, false), xattrFate(name, true)}; got != want {
			t.Errorf("%s has the fates %v, want %v", name, got, want)
		}
	}
	needRoot(t)
	items := []item{
		{path: "d", kind: tar.TypeDir, mode: 0o755, xattrs: map[string]string{
			"user.overlay.opaque":   "y",
			"user.overlay.redirect": "/x",
		}},
		{path: "d/f", kind: tar.TypeReg, mode: 0o644, xattrs: map[string]string{"user.overlay.origin": "o"}},
	}
	dir := t.TempDir()
	if err := errors.Join(unpack(dir, items), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	img := fromDir(t, dir)
	if !bytes.Equal(img, fromTar(t, pack(t, items))) {
		t.Error("image differs between tar and directory")
	}
	for _, value := range []string{"redirect", "origin"} {
		if !bytes.Contains(img, []byte("overlay."+value)) {
			t.Errorf("user.overlay.%s is not in the image", value)
		}
	}
	if _, err := FromDir(t.Context(), dir, true); err == nil || !strings.Contains(err.Error(), "user.overlay.redirect") {
		t.Errorf("of an overlay with userxattr FromDir() = %v", err)
	}
}

func TestOverlayFeaturesThatALayerCannotCarryAreRefused(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "half")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(file, "trusted.overlay.metacopy", nil, 0); err != nil {
		t.Skip(err)
	}
	_, err := FromDir(t.Context(), dir, false)
	if err == nil || !strings.Contains(err.Error(), "/half") || !strings.Contains(err.Error(), "metacopy") {
		t.Errorf("FromDir = %v, want an error that names file and attribute", err)
	}
}

func TestAFileThatChangesIsNoticed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := FromDir(t.Context(), dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := os.Truncate(file, 9000); err != nil {
		t.Fatal(err)
	}
	if err := tree.Write(t.Context(), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "/f") {
		t.Errorf("Write = %v, want an error that names /f", err)
	}
}

func TestMissingDirectory(t *testing.T) {
	if _, err := FromDir(t.Context(), "/does/not/exist", false); err == nil ||
		!strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("FromDir = %v, want an error that names the directory", err)
	}
}

// Files that a container has written keep their times. A directory's time that has a fraction is that of the unpacking.
func TestTimesOfDirectoriesThatAContainerHasWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(dir, "d"), time.Time{}, time.Unix(1e9, 7)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		read func(context.Context, string, bool) (*Tree, error)
		want int64
	}{"unpacked": {FromDir, 0}, "written": {FromUpper, 1e9}} {
		tree, err := c.read(t.Context(), dir, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.root.kids[0].node.mtime; got != c.want {
			t.Errorf("%s: the directory's time is %d, want %d", name, got, c.want)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}
}
