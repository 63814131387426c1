// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"archive/tar"
	"bytes"
	"slices"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
)

// dockers is the layer that Docker 26 makes for a container of an image that has /dev, /proc and /sys.
func dockers(at int64) []item {
	empty := func(path string) item {
		return item{path: path, kind: tar.TypeReg, mode: 0o755, mtime: at}
	}
	return []item{
		empty(".dockerenv"),
		{path: "dev", kind: tar.TypeDir, mode: 0o755, mtime: at},
		empty("dev/console"),
		{path: "dev/pts", kind: tar.TypeDir, mode: 0o755, mtime: at},
		{path: "dev/shm", kind: tar.TypeDir, mode: 0o755, mtime: at},
		{path: "etc", kind: tar.TypeDir, mode: 0o755, mtime: at},
		empty("etc/hostname"), empty("etc/hosts"), empty("etc/resolv.conf"),
		{path: "etc/mtab", kind: tar.TypeSymlink, target: "/proc/mounts", mode: 0o777, mtime: at},
	}
}

// TestDockersLayerIsTheSameForAllContainers, whenever they were made and whatever the image has.
func TestDockersLayerIsTheSameForAllContainers(t *testing.T) {
	want := fromTar(t, pack(t, dockers(1)))
	dir := func(path string) item { return item{path: path, kind: tar.TypeDir, mode: 0o555, uid: 7, mtime: 9} }
	opaque := slices.Insert(dockers(9), 6, item{path: "etc", kind: 'o'}) // of an image without /etc
	for what, items := range map[string][]item{
		"of another time":             dockers(1<<31 - 1),
		"of an image without a /proc": append(dockers(2), dir("proc"), dir("sys")),
		"of an image with a /dev/pts": slices.Delete(dockers(2), 3, 5),
		"of an image without an /etc": opaque,
	} {
		if !bytes.Equal(fromTar(t, pack(t, items)), want) {
			t.Errorf("the layer %s differs", what)
		}
		if !testvm.Has(testvm.Root) {
			continue
		}
		dir := t.TempDir()
		if err := unpack(dir, items); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(fromDir(t, dir), want) {
			t.Errorf("the unpacked layer %s differs", what)
		}
	}
}

// TestALayerThatIsNotDockersKeepsItsTimes: one more name, or one other property, and the layer is written as it is.
func TestALayerThatIsNotDockersKeepsItsTimes(t *testing.T) {
	file := func(path, text string) item {
		return item{path: path, kind: tar.TypeReg, mode: 0o755, mtime: 1, data: []byte(text)}
	}
	change := func(i int, f func(*item)) []item {
		out := dockers(1)
		f(&out[i])
		return out
	}
	docker := fromTar(t, pack(t, dockers(1)))
	for what, items := range map[string][]item{
		"a program":               append(dockers(1), file("sh", "#!")),
		"a program in /etc":       append(dockers(1), file("etc/profile", "")),
		"a device":                append(dockers(1), item{path: "dev/x", kind: tar.TypeChar, mode: 0o755, mtime: 1}),
		"a file in /dev/shm":      append(dockers(1), file("dev/shm/x", "")),
		"a file in /proc":         append(dockers(1), item{path: "proc", kind: tar.TypeDir, mode: 0o755}, file("proc/x", "")),
		"a file called /sys":      append(dockers(1), file("sys", "")),
		"a console with content":  change(2, func(i *item) { i.data = []byte("x") }),
		"hosts with content":      change(7, func(i *item) { i.data = []byte("127.0.0.1 a") }),
		"hosts of another mode":   change(7, func(i *item) { i.mode = 0o4755 }),
		"hosts of another owner":  change(7, func(i *item) { i.uid = 1 }),
		"hosts of another group":  change(7, func(i *item) { i.gid = 1 }),
		"hosts with an attribute": change(7, func(i *item) { i.xattrs = map[string]string{"user.a": "b"} }),
		"an /etc of another mode": change(5, func(i *item) { i.mode = 0o700 }),
		"an /etc with attributes": change(5, func(i *item) { i.xattrs = map[string]string{"user.a": "b"} }),
		"another link":            change(9, func(i *item) { i.target = "/proc/swaps_" }),
		"a link for a file":       change(7, func(i *item) { i.kind, i.target = tar.TypeSymlink, "/x" }),
		"without .dockerenv":      dockers(1)[1:],
		"without mtab":            dockers(1)[:9],
		"without /etc":            dockers(1)[:5],
	} {
		got := fromTar(t, pack(t, items))
		if bytes.Equal(got, docker) {
			t.Errorf("%s: taken for Docker's", what)
		}
		for i := range items {
			items[i].mtime = 2
		}
		if bytes.Equal(fromTar(t, pack(t, items)), got) {
			t.Errorf("%s: the times are lost", what)
		}
	}
}
