// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/internal/testvm"
)

const ref = "registry.example/team/app:1"

// testImage has three layers, with a volume and users.
func testImage(t *testing.T) v1.Image {
	t.Helper()
	dir := func(path string) testimage.File { return testimage.File{Path: path, Mode: os.ModeDir | 0o755} }
	file := func(path, text string) testimage.File {
		return testimage.File{Path: path, Mode: 0o644, Data: []byte(text)}
	}
	im := testimage.Image{
		Layers: [][]testimage.File{
			{
				dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), file("etc/group", "root:x:0:\n"),
				dir("data"), file("data/a", "a"),
			},
			{dir("data"), dir("data/sub"), file("data/sub/b", "b"), {Path: "lnk", Mode: os.ModeSymlink | 0o777, Link: "data/a"}},
			{
				dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n"),
				dir("big"), file("big/f", strings.Repeat("x", 300_000)),
			},
		},
		Config: v1.Config{Entrypoint: []string{"/app"}, User: "app", Volumes: map[string]struct{}{"/data": {}, "/none": {}}},
	}
	img, err := im.Build()
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// nodes unpacks each layer into a directory, as the overlayfs snapshotter does, and builds it as the node does.
func nodes(t *testing.T, img v1.Image) (hashes []string) {
	t.Helper()
	cache, err := layer.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "tar", "-xp", "--numeric-owner", "-C", dir)
		cmd.Stdin = r
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: %v: %s", err, out)
		}
		built, err := cache.Open(t.Context(), layer.Source{Kind: layer.Dir, Path: dir})
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, built.Hex())
		if err := built.Close(); err != nil {
			t.Error(err)
		}
	}
	return hashes
}

func writeLayout(t *testing.T, add ...mutate.IndexAddendum) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, add...)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func named(img mutate.Appendable, ref string) mutate.IndexAddendum {
	return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
		Annotations: map[string]string{"org.opencontainers.image.ref.name": ref},
	}}
}

func store(t *testing.T, path string) *Finder {
	t.Helper()
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	return &Finder{Local: []Store{s}, Offline: true, TempDir: t.TempDir()}
}

func archive(t *testing.T, img v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRootHashesAreThoseOfTheNode(t *testing.T) {
	testvm.Need(t, testvm.Root) // files of other users
	img := testImage(t)
	want := nodes(t, img)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	remoteRef := strings.TrimPrefix(server.URL, "http://") + "/app:1"
	to, err := name.ParseReference(remoteRef)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, ref string
		finder    *Finder
	}{
		{"OCI layout", ref, store(t, writeLayout(t, named(img, ref)))},
		{"OCI layout with a tag only", ref, store(t, writeLayout(t, named(img, "1")))},
		{"docker archive", ref, store(t, archive(t, img))},
		{"registry", remoteRef, &Finder{TempDir: t.TempDir()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.finder.Resolve(t.Context(), tt.ref)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got.Layers); diff != "" {
				t.Errorf("layers differ from the node's: %s", diff)
			}
			if !strings.Contains(string(got.Passwd), "app:x:7:8") || string(got.Group) != "root:x:0:\n" ||
				got.Config.User != "app" {
				t.Errorf("Resolve = %+v", got)
			}
			if files := got.Volumes["/data"]; len(files) != 2 || files[0].Path != "a" || files[1].Path != "sub/b" {
				t.Errorf("files of the volume = %v", files)
			}
			if left, err := os.ReadDir(tt.finder.TempDir); err != nil || len(left) > 0 {
				t.Errorf("temporary files are left: %v, %v", left, err)
			}
		})
	}
}

func TestZstdAndEmptyLayers(t *testing.T) {
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := static.NewLayer(raw.Bytes(), types.OCIUncompressedLayer)
	packed := z.EncodeAll(raw.Bytes(), nil)
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }
	layers, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayerZStd))
	if err != nil {
		t.Fatal(err)
	}
	hash := func(add ...v1.Layer) []string {
		img, err := mutate.AppendLayers(empty.Image, add...)
		if err != nil {
			t.Fatal(err)
		}
		got, err := store(t, writeLayout(t, named(img, ref))).Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		return got.Layers
	}
	none := hash()
	if len(none) != 1 {
		t.Fatalf("an image without layers has %d root hashes, want that of an empty directory", len(none))
	}
	if got := hash(layers); !slices.Equal(got, none) {
		t.Errorf("an empty layer, zstd = %v, want %v", got, none)
	}
	if got := hash(plain); !slices.Equal(got, none) {
		t.Errorf("an empty layer = %v, want %v", got, none)
	}
}

func TestChangedBytesAreRefused(t *testing.T) {
	img := testImage(t)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for what, hash := range map[string]v1.Hash{
		"manifest": digest, "configuration": m.Config.Digest, "layer 1": m.Layers[1].Digest,
	} {
		dir := writeLayout(t, named(img, ref))
		path := filepath.Join(dir, "blobs", "sha256", hash.Hex)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte("sha256"), []byte("sha512"), 1)
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f := store(t, dir)
		if got, err := f.Resolve(t.Context(), ref); err == nil {
			t.Errorf("%s changed: Resolve = %+v, want an error", what, got)
		}
		if left, err := os.ReadDir(f.TempDir); err != nil || len(left) > 0 {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}
	}
}

func TestIndexes(t *testing.T) {
	img := testImage(t)
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	amd := v1.Platform{OS: "linux", Architecture: "amd64"}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &amd}},
		mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{Platform: &arm}})
	f := store(t, writeLayout(t, named(index, ref)))
	got, err := f.Resolve(t.Context(), ref)
	if want, derr := img.Digest(); err != nil || derr != nil || got.Digest != want.String() {
		t.Errorf("Resolve = %v, %v, want the digest of the platform's manifest, %v", got.Digest, err, want)
	}
	if want := "registry.example/team/app@" + got.Digest; got.Pinned() != want {
		t.Errorf("Pinned = %s, want %s", got.Pinned(), want)
	}
	f.Platform = &v1.Platform{OS: "linux", Architecture: "riscv64"}
	if _, err := f.Resolve(t.Context(), ref); err == nil ||
		!strings.Contains(err.Error(), "only for linux/amd64, linux/arm64") {
		t.Errorf("for another platform Resolve = %v", err)
	}
	f.Platform = nil
	if _, err := f.Resolve(t.Context(), "registry.example/other:1"); err == nil ||
		!strings.Contains(err.Error(), "no registry may be asked") {
		t.Errorf("Resolve of another image = %v", err)
	}
	by := "registry.example/team/app@" + got.Digest
	again, err := store(t, writeLayout(t, named(img, ref))).Resolve(t.Context(), by)
	if err != nil || again.Digest != got.Digest {
		t.Errorf("Resolve by digest = %v, %v", again.Digest, err)
	}
}

func TestTheCacheSparesReadingLayers(t *testing.T) {
	img := testImage(t)
	dir := writeLayout(t, named(img, ref))
	f := store(t, dir)
	f.Cache = Cache(filepath.Join(t.TempDir(), "cache"))
	want, err := f.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if err := os.Remove(filepath.Join(dir, "blobs", "sha256", l.Digest.Hex)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := f.Resolve(t.Context(), ref)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Resolve from the cache: %v: %s", err, diff)
	}
}
