// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/image/resolve"
)

// when is the time of all files, with a part of a second.
var when = time.Unix(1700000000, 123456789)

type header = tar.Header

func dir(name string, mode int64) header {
	return header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}

func file(name, text string) header {
	return header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text)), PAXRecords: map[string]string{
		textRecord: text,
	}}
}

func link(name, to string) header {
	return header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
}

// hard is a hard link. Like tar, it repeats the mode of the file.
func hard(name, to string) header {
	return header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}
}

// textRecord keeps a file's text until it is written; it does not come into the archive.
const textRecord = "COCO.text"

func with(h header, change func(*header)) header { change(&h); return h }

func xattr(h header, name, value string) header {
	h.PAXRecords = map[string]string{textRecord: h.PAXRecords[textRecord], "SCHILY.xattr." + name: value}
	return h
}

// shape is a layer. Each comes above those before it.
type shape struct {
	name    string
	entries []header
}

// capability is a file's, as setcap(8) writes cap_net_raw=ep.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func shapes() []shape {
	many := []header{dir("many/", 0o755)}
	for i := range 700 {
		many = append(many, file(fmt.Sprintf("many/file-%03d", i), ""))
	}
	deep := strings.Repeat("deep/", 60)
	return []shape{
		{"a base", []header{
			dir("etc/", 0o755), file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), dir("data/", 0o700), file("data/a", "a"),
			dir("data/sub/", 0o750), file("data/sub/b", "b"), dir("gone/", 0o755), file("gone/x", "x"), file("file", "f"),
			with(dir("own/", 0o710), func(h *header) { h.Uid, h.Gid = 7, 8 }), dir("usr/", 0o755), dir("usr/lib/", 0o755),
		}},
		{"paths with ./", []header{dir("./", 0o755), dir("./opt/", 0o755), file("./opt/x", "x")}},
		{"absolute paths", []header{dir("/srv/", 0o755), file("/srv/x", "x")}},
		{"a root with mode and owner", []header{with(dir("./", 0o711), func(h *header) { h.Uid = 5 })}},
		{"a whiteout of a file", []header{dir("data/", 0o700), file("data/.wh.a", "")}},
		{"a whiteout of a directory", []header{file(".wh.gone", "")}},
		{"a whiteout of nothing", []header{file("etc/.wh.none", "")}},
		{"an opaque directory", []header{dir("data/", 0o755), file("data/.wh..wh..opq", ""), file("data/new", "n")}},
		{"an opaque directory, marked last", []header{
			dir("data/sub/", 0o755), file("data/sub/c", "c"), file("data/sub/.wh..wh..opq", ""),
		}},
		{"a whiteout and a new file of the name", []header{file(".wh.file", ""), file("file", "again")}},
		{"a file more", []header{file("kept", "k")}},
		{"hard links", []header{file("h1", "h"), hard("h2", "h1"), hard("sub/h3", "./h1")}},
		{"a hard link with an absolute target", []header{file("h4", "h"), hard("h5", "/h4")}},
		{"links", []header{
			link("l1", "file"), link("l2", "/etc/passwd"), link("l3", "../../out"), link("l4", strings.Repeat("x", 300)),
		}},
		{"a hard link to a link", []header{link("l5", "file"), hard("l6", "l5")}},
		{"/etc as a link", []header{dir("usr/etc/", 0o755), file("usr/etc/os", "o"), link("etc", "usr/etc")}},
		{"files below that link", []header{file("etc/hosts", "h")}},
		{"a link and files below it", []header{dir("real/", 0o755), link("alias", "real"), file("alias/f", "f")}},
		{"directories that nobody describes", []header{file("p/q/r/s", "s")}},
		{"directories that the layer below describes", []header{file("own/f", "f"), file("usr/lib/g", "g")}},
		{"a directory after its files", []header{file("late/f", "f"), dir("late/", 0o701)}},
		{"a file twice", []header{file("twice", "one"), file("twice", "second")}},
		{"a file, then a directory", []header{file("turn", "f"), dir("turn/", 0o755), file("turn/x", "x")}},
		{"a directory in place of a file", []header{dir("kept/", 0o755), file("kept/x", "x")}},
		{"a file in place of a directory", []header{file("late", "file")}},
		{"a mode changed alone", []header{dir("usr/lib/", 0o500)}},
		{"extended attributes", []header{
			xattr(file("attr", "a"), "user.name", "value"), xattr(dir("attrs/", 0o755), "user.d", ""),
			xattr(file("attrs/many", ""), "user.long", strings.Repeat("v", 1000)),
		}},
		{"a file's capabilities", []header{xattr(file("ping", "elf"), "security.capability", capability)}},
		{"special modes", []header{
			dir("sticky/", 0o1777), with(file("setuid", "s"), func(h *header) { h.Mode = 0o4755 }),
			with(file("setgid", "s"), func(h *header) { h.Mode = 0o2755 }),
		}},
		{"large owners", []header{with(file("owned", "o"), func(h *header) { h.Uid, h.Gid = 3000000000, 70000 })}},
		{"a fifo and devices", []header{
			{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
			{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
			{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 259, Devminor: 70000},
		}},
		{"sizes", []header{
			file("s0", ""), file("s1", "x"), file("s4095", strings.Repeat("x", 4095)), file("s4096", strings.Repeat("y", 4096)),
			file("s4097", strings.Repeat("z", 4097)), file("s300k", strings.Repeat("0123456789", 30000)),
		}},
		{"zeros", []header{file("zeros", strings.Repeat("\x00", 1<<20))}},
		{"names", []header{
			file("ünï", "u"), file("a b\tc", "x"), file(strings.Repeat("n", 255), "n"), file("-rf", "r"), file("...", "d"),
			file("q'\"\\", "q"),
		}},
		{"a deep path", []header{file(deep+"f", "f")}},
		{"a directory of 700 files", many},
		{"times", []header{
			with(file("epoch", "e"), func(h *header) { h.ModTime = time.Unix(0, 0) }),
			with(file("future", "f"), func(h *header) { h.ModTime = time.Unix(1<<33, 5) }),
			with(file("before", "b"), func(h *header) { h.ModTime = time.Unix(-100, 0) }),
		}},
		{"headers of GNU tar", []header{with(file(strings.Repeat("g", 200), "g"), func(h *header) {
			h.Format, h.ModTime = tar.FormatGNU, time.Unix(5, 0)
		})}},
		{"headers of USTAR", []header{with(file("ustar", "u"), func(h *header) {
			h.Format, h.ModTime = tar.FormatUSTAR, time.Unix(5, 0)
		})}},
		{"a global header", []header{
			{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}},
			file("global", "g"),
		}},
		{"nothing", nil},
	}
}

func archive(t *testing.T, entries []header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		text := h.PAXRecords[textRecord]
		records := map[string]string{}
		for k, v := range h.PAXRecords {
			if k != textRecord {
				records[k] = v
			}
		}
		if h.PAXRecords = records; len(records) == 0 {
			h.PAXRecords = nil
		}
		if h.ModTime.IsZero() && h.Typeflag != tar.TypeXGlobalHeader {
			h.ModTime = when
		}
		if h.Format == tar.FormatUnknown && h.Typeflag != tar.TypeXGlobalHeader {
			h.Format = tar.FormatPAX
		}
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			t.Fatalf("entry %q: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// packed is a layer, compressed by gzip, zstd or not at all.
func packed(t *testing.T, raw []byte, n int) v1.Layer {
	t.Helper()
	opener := func(b []byte) tarball.Opener {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	var l v1.Layer
	var err error
	switch n % 3 {
	case 0:
		l, err = tarball.LayerFromOpener(opener(raw), tarball.WithMediaType(types.OCILayer))
	case 1:
		z, zerr := zstd.NewWriter(nil)
		if zerr != nil {
			t.Fatal(zerr)
		}
		l, err = tarball.LayerFromOpener(opener(z.EncodeAll(raw, nil)), tarball.WithMediaType(types.OCILayerZStd))
	default:
		l = static.NewLayer(raw, types.OCIUncompressedLayer)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// layoutOf writes an image of layers into an OCI layout.
func layoutOf(t *testing.T, ref string, layers []v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err == nil {
		var c *v1.ConfigFile
		if c, err = img.ConfigFile(); err == nil {
			c = c.DeepCopy()
			c.Architecture, c.OS = "amd64", "linux"
			img, err = mutate.ConfigFile(img, c)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: img, Descriptor: v1.Descriptor{Annotations: map[string]string{
			"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref,
		}},
	})); err != nil {
		t.Fatal(err)
	}
	return dir
}

// unpacked are the root hashes that a node makes of an image which containerd has unpacked, the lowest layer first.
func unpacked(t *testing.T, version, layout, ref string) []string {
	t.Helper()
	d := daemon(t, version)
	out := filepath.Join(t.TempDir(), "image.tar")
	if b, err := exec.CommandContext(t.Context(), "tar", "-cf", out, "-C", layout, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, b)
	}
	do := func(args ...string) string {
		t.Helper()
		r := d.Ctr(context.Background(), args...) // also when the test has ended
		if r.Err != nil || r.Code != 0 {
			t.Fatalf("ctr %q: %v %d: %s", args, r.Err, r.Code, r.Stderr)
		}
		return r.Stdout
	}
	do("images", "import", out)
	id := "unpacked-" + filepath.Base(ref)[:3]
	do("containers", "create", ref, id, "true")
	t.Cleanup(func() { do("containers", "rm", id) })
	_, options, _ := strings.Cut(do("snapshots", "mounts", "/at", id), "lowerdir=")
	end := strings.IndexAny(options, ", \n")
	if end < 0 {
		t.Fatalf("the mount of the image has no lowerdir: %q", options)
	}
	cache, err := layer.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var hashes []string
	for _, dir := range slices.Backward(strings.Split(options[:end], ":")) {
		l, err := cache.Open(t.Context(), layer.Source{Kind: layer.Dir, Path: dir})
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, l.Hex())
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	return hashes
}

// TestPoliciesPinWhatContainerdUnpacks: the root hash that a policy gets from the archive of a layer is the one that
// the node makes of the directory into which containerd has unpacked it, for every shape of a layer.
func TestPoliciesPinWhatContainerdUnpacks(t *testing.T) {
	var layers, hundred []v1.Layer
	list := shapes()
	for i, s := range list {
		layers = append(layers, packed(t, archive(t, s.entries), i))
	}
	for i := range 100 {
		raw := archive(t, []header{file(fmt.Sprint("n", i), "x"), file("over", fmt.Sprint(i))})
		hundred = append(hundred, packed(t, raw, 2))
	}
	for name, of := range map[string][]v1.Layer{"shapes": layers, "100 layers": hundred} {
		t.Run(name, func(t *testing.T) {
			ref := "docker.io/library/" + strings.ReplaceAll(name, " ", "-") + ":1"
			layout := layoutOf(t, ref, of)
			store, err := resolve.OpenStore(layout)
			if err != nil {
				t.Fatal(err)
			}
			f := resolve.Finder{Local: []resolve.Store{store}, Offline: true, TempDir: t.TempDir()}
			got, err := f.Resolve(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			want := unpacked(t, primary, layout, ref)
			if len(got.Layers) != len(want) || len(want) != len(of) {
				t.Fatalf("%d layers: the policy pins %d, the node has %d", len(of), len(got.Layers), len(want))
			}
			for i := range want {
				if got.Layers[i] != want[i] {
					what := fmt.Sprint("layer ", i)
					if name == "shapes" {
						what = list[i].name
					}
					t.Errorf("%s: the policy pins %s, the node has %s", what, got.Layers[i], want[i])
				}
			}
		})
	}
}
