// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"bytes"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/internal/testimage"
)

// server is a registry over TLS. wrong handles a request in place of it, and says whether it did.
type server struct {
	*httptest.Server
	good http.Handler

	mu    sync.Mutex
	wrong func(w http.ResponseWriter, r *http.Request) bool
	asked []string // methods and paths
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{good: gcr.New(gcr.Logger(log.New(io.Discard, "", 0)))}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		wrong := s.wrong
		s.asked = append(s.asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
		s.mu.Unlock()
		if wrong == nil || !wrong(w, r) {
			s.good.ServeHTTP(w, r)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) breakWith(wrong func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong, s.asked = wrong, nil
}

// repository is that of all tests.
func (s *server) repository() string { return strings.TrimPrefix(s.URL, "https://") + "/team/app" }

// push puts an image into the registry and returns its digest.
func (s *server) push(t *testing.T, img v1.Image) string {
	t.Helper()
	s.breakWith(nil)
	ref, err := name.NewTag(s.repository() + ":1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(s.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// config reaches the server, which is on this machine.
func (s *server) config(t *testing.T) Config {
	t.Helper()
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	transport := registry.Transport{
		Roots: []*x509.Certificate{s.Certificate()}, Allow: func(a netip.Addr) bool { return a.IsLoopback() },
	}.New()
	t.Cleanup(transport.CloseIdleConnections)
	return Config{
		Dir: dir, Registry: registry.Config{
			Transport: transport, Retry: registry.Retry{Attempts: 3, First: time.Millisecond, Stall: 300 * time.Millisecond},
		},
	}
}

// layered is an image of layers in three compressions, with what is special in layers.
func layered(t *testing.T) v1.Image {
	t.Helper()
	file := func(path, text string) testimage.File {
		return testimage.File{Path: path, Mode: 0o644, Data: []byte(text)}
	}
	im := testimage.Image{
		Layers: [][]testimage.File{
			{{Path: "d", Mode: os.ModeDir | 0o711, UID: 5}, file("d/a", "a"), file("gone", "x")},
			{file("d/b", strings.Repeat("b", 300_000)), file(".wh.gone", ""), file("d/.wh..wh..opq", "")},
			{{Path: "link", Mode: os.ModeSymlink | 0o777, Link: "d"}, file("link/c", "")},
		},
	}
	img, err := im.Build()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	out := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for i, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		add := mutate.Addendum{Layer: l}
		switch i {
		case 1:
			add = compressed(t, plain, zstded(t, plain), types.OCILayerZStd)
		case 2:
			add = compressed(t, plain, plain, types.OCIUncompressedLayer)
		}
		if out, err = mutate.Append(out, add); err != nil {
			t.Fatal(err)
		}
	}
	cf, err := out.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	if out, err = mutate.ConfigFile(out, cf); err != nil {
		t.Fatal(err)
	}
	return out
}

func zstded(t *testing.T, plain []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(plain, nil)
}

// withDiff is a layer whose diff id is that of other bytes than its own.
type withDiff struct {
	v1.Layer
	plain []byte
}

func (l withDiff) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.plain))
	return h, err
}

func (l withDiff) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

func compressed(t *testing.T, plain, as []byte, media types.MediaType) mutate.Addendum {
	t.Helper()
	return mutate.Addendum{Layer: withDiff{static.NewLayer(as, media), plain}, MediaType: media}
}

// single is an image of one layer with this content.
func single(t *testing.T, adds ...mutate.Addendum) v1.Image {
	t.Helper()
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), adds...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}
