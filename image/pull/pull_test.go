// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coco-shim/coco/image/crypt"
	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/image/resolve"
	"github.com/coco-shim/coco/image/verity"
)

// The layers are those of a node, byte for byte: the root hashes that a policy has are computed by package resolve, and
// its test compares them with those of directories that were unpacked.
func TestLayersAreThoseOfTheNode(t *testing.T) {
	s := newServer(t)
	for what, img := range map[string]v1.Image{"three layers": layered(t), "no layer": single(t)} {
		digest := s.push(t, img)
		old := http.DefaultTransport
		http.DefaultTransport = s.Client().Transport // of package resolve
		want, err := (&resolve.Finder{}).Resolve(t.Context(), s.repository()+"@"+digest)
		http.DefaultTransport = old
		if err != nil {
			t.Fatal(err)
		}
		cfg, told := s.config(t), ""
		cfg.Progress = func(p Progress) { told = p.String() }
		got, err := Image(t.Context(), cfg, s.repository(), digest)
		if err != nil {
			t.Fatal(err)
		}
		var hashes []string
		for _, l := range got {
			hashes = append(hashes, l.Hex())
			f, err := cfg.Dir.Open(l.Name)
			if err != nil {
				t.Fatal(err)
			}
			if err := verity.Verify(t.Context(), f, l.Params); err != nil {
				t.Error(err)
			}
			f.Close()
		}
		if !slices.Equal(hashes, want.Layers) {
			t.Errorf("%s: root hashes %q, and a node has %q", what, hashes, want.Layers)
		}
		if files, err := filepath.Glob(cfg.Dir.Name() + "/*"); err != nil || len(files) != len(got) {
			t.Errorf("%s: the directory has %q, %v", what, files, err)
		}
		if what == "three layers" && told != "layer 3/3, 100 %, write the file system" {
			t.Errorf("the last progress was %q", told)
		}
	}
}

// refuse pulls and expects an error with a text.
func refuse(t *testing.T, cfg Config, repository, digest, want string) {
	t.Helper()
	got, err := Image(t.Context(), cfg, repository, digest)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Image() = %v, %v, want an error with %q", got, err, want)
	}
}

func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

// TestRegistriesThatMisbehave: each is survived, or refused with the reason.
func TestRegistriesThatMisbehave(t *testing.T) {
	s := newServer(t)
	digest := s.push(t, layered(t))
	forBlobs := func(do http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			do(w, r)
			return true
		}
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return forBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"errors":[{"code":"X","message":"no such luck"}]}`)
		})
	}
	to := func(where string) func(http.ResponseWriter, *http.Request) bool {
		return forBlobs(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, where, http.StatusTemporaryRedirect)
		})
	}
	for what, c := range map[string]struct {
		wrong func(http.ResponseWriter, *http.Request) bool
		want  string
	}{
		"another manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				_, _ = io.WriteString(w, "{}")
				return true
			}
			return false
		}, "the registry sent bytes with digest sha256:44136fa3"},
		"no blob":      {status(http.StatusNotFound), "404 Not Found: no such luck; the repository does not have it"},
		"too busy":     {status(http.StatusTooManyRequests), "3 attempts: "},
		"broken":       {status(http.StatusBadGateway), "502 Bad Gateway"},
		"login wanted": {status(http.StatusUnauthorized), "initdata has none for " + s.repository()},
		"to http":      {to("http://mirror.example/x"), "redirects to http://mirror.example, and https alone is followed"},
		"to metadata":  {to("https://169.254.169.254/latest"), "169.254.169.254 is no address of a registry"},
		"round":        {to("/v2/team/app/blobs/x"), "redirects more than 5 times"},
		"one byte each": {
			forBlobs(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") }), "sent bytes",
		},
		"stalls": {forBlobs(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), "nothing came for"},
	} {
		s.breakWith(c.wrong)
		t.Run(what, func(t *testing.T) { refuse(t, s.config(t), s.repository(), digest, c.want) })
	}
}

// A transfer that breaks goes on where it stopped, or is read again where the registry cannot do that.
func TestTransfersThatBreakAreContinued(t *testing.T) {
	s := newServer(t)
	digest := s.push(t, layered(t))
	for _, ranges := range []bool{true, false} {
		times := map[string]int{}
		s.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			rec := httptest.NewRecorder()
			plain := r.Clone(r.Context())
			plain.Header.Del("Range")
			s.good.ServeHTTP(rec, plain)
			all := rec.Body.Bytes()
			times[r.URL.Path]++
			var from int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil && ranges {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(all)-1, len(all)))
				w.WriteHeader(http.StatusPartialContent)
				all = all[from:]
			}
			if times[r.URL.Path] == 1 && len(all) > 1 {
				all = all[:len(all)/2]
				w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
			}
			_, _ = w.Write(all)
			return true
		})
		if got, err := Image(t.Context(), s.config(t), s.repository(), digest); err != nil || len(got) != 3 {
			t.Errorf("ranges %v: Image() = %v, %v", ranges, got, err)
		}
		for path, n := range times {
			if n != 2 {
				t.Errorf("ranges %v: %s was asked for %d times", ranges, path, n)
			}
		}
	}
}

func TestImagesThatAreRefused(t *testing.T) {
	s := newServer(t)
	plain := make([]byte, 1024) // an empty tar
	gz := func(l v1.Layer) []byte {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	layers, err := layered(t).Layers()
	if err != nil {
		t.Fatal(err)
	}
	first := gz(layers[0])
	bomb, text := zstded(t, make([]byte, 64<<20)), bytes.Repeat([]byte("x"), 2048)
	of := func(plain, as []byte, media types.MediaType) v1.Image {
		return single(t, compressed(t, plain, as, media))
	}
	for what, c := range map[string]struct {
		img  v1.Image
		want string
	}{
		"another layer": {of(plain, zstded(t, plain[:512]), types.OCILayerZStd), "it is another layer"},
		"type of gzip":  {of(plain, zstded(t, plain), types.OCILayer), "gzip: invalid header"},
		"type of zstd":  {of(plain, plain, types.OCILayerZStd), "decompress: "},
		"foreign":       {of(plain, plain, types.DockerForeignLayer), "foreign.diff.tar.gzip\" are not pulled"},
		"gzip with more": {
			of(plain, append(bytes.Clone(first), "more than that"...), types.OCILayer), "invalid header",
		},
		"no key": {of(plain, plain, types.OCIUncompressedLayer+crypt.Suffix), "names no key broker"},
		"bomb":   {of(plain, bomb, types.OCILayerZStd), "more than 400 times its size"},
		"no tar": {of(text, text, types.OCIUncompressedLayer), "layer tar: "},
	} {
		digest := s.push(t, c.img)
		t.Run(what, func(t *testing.T) { refuse(t, s.config(t), s.repository(), digest, c.want) })
	}
	digest := s.push(t, layered(t))
	for what, c := range map[string]struct {
		limits Limits
		want   string
	}{
		"layers":  {Limits{Layers: 2}, "has 3 layers, more than 2"},
		"bytes":   {Limits{Bytes: 100_000}, "more than 100000 bytes"},
		"entries": {Limits{Entries: 2}, "more than 2 files"},
	} {
		cfg := s.config(t)
		cfg.Limits = c.limits
		t.Run(what, func(t *testing.T) { refuse(t, cfg, s.repository(), digest, c.want) })
	}
	for _, repository := range []string{
		"app", "docker.io/app", s.repository() + ":1", "http://x.y/z", "x.y/../z", "x.y/A", "x.y/a--", "x.y/",
	} {
		refuse(t, s.config(t), repository, digest, "repository ")
	}
	refuse(t, s.config(t), s.repository(), "sha256:abc", "is no digest")
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: layered(t)})
	ref, err := name.NewTag(s.repository() + ":2")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithTransport(s.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	d, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, s.config(t), s.repository(), d.String(), "is an index")
}

// No other CA than those of the configuration counts.
func TestForeignCertificatesAreRefusedAtOnce(t *testing.T) {
	s := newServer(t)
	digest := s.push(t, layered(t))
	cfg := s.config(t)
	cfg.Registry.Transport = registry.Transport{Allow: func(netip.Addr) bool { return true }}.New()
	refuse(t, cfg, s.repository(), digest, "1 attempts: ask "+strings.TrimPrefix(s.URL, "https://")+": its certificate "+
		"is not trusted")
	cfg.Registry.Transport = registry.Transport{Roots: []*x509.Certificate{s.Certificate()}}.New()
	refuse(t, cfg, s.repository(), digest, "127.0.0.1 is no address of a registry")
}

// TestEncryptedLayers are pulled with their key, and refused when they were changed.
func TestEncryptedLayers(t *testing.T) {
	s := newServer(t)
	layers, err := layered(t).Layers()
	if err != nil {
		t.Fatal(err)
	}
	key := crypt.Recipient{Kid: "kbs:///default/image-kek/app", Key: bytes.Repeat([]byte("k"), 32)}
	encrypt := func(l v1.Layer, flip bool) mutate.Addendum {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		e, err := crypt.Encrypt(r, d.String(), key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(e)
		if err != nil {
			t.Fatal(err)
		}
		if flip {
			b[len(b)/2] ^= 1
		}
		u, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(u)
		if err != nil {
			t.Fatal(err)
		}
		media, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		add := compressed(t, plain, b, media+crypt.Suffix)
		if add.Annotations, err = e.Annotations(); err != nil {
			t.Fatal(err)
		}
		return add
	}
	var all []mutate.Addendum
	for _, l := range layers {
		all = append(all, encrypt(l, false))
	}
	plain := s.config(t)
	want, err := Image(t.Context(), plain, s.repository(), s.push(t, layered(t)))
	if err != nil {
		t.Fatal(err)
	}
	digest := s.push(t, single(t, all...))
	cfg, allowed := s.config(t), key.Kid
	cfg.Keys = func(_ context.Context, kid string) ([]byte, error) {
		if kid != allowed {
			return nil, fmt.Errorf("the policy does not allow it")
		}
		return bytes.Clone(key.Key), nil
	}
	got, err := Image(t.Context(), cfg, s.repository(), digest)
	if err != nil || len(got) != len(want) {
		t.Fatalf("Image() = %v, %v", got, err)
	}
	for i := range got {
		if got[i].Hex() != want[i].Hex() {
			t.Errorf("layer %d: root hash %s, and %s when it is not encrypted", i, got[i].Hex(), want[i].Hex())
		}
	}
	changed := s.config(t)
	changed.Keys = cfg.Keys
	refuse(t, changed, s.repository(), s.push(t, single(t, encrypt(layers[0], true))), "it was changed, or is another")
	key.Kid = "kbs:///default/image-kek/other"
	other := s.config(t)
	other.Keys = cfg.Keys
	refuse(t, other, s.repository(), s.push(t, single(t, encrypt(layers[0], false))), "the policy does not allow it")
}

// Registries ask for a login, by name or by token. The login goes to them alone.
func TestLogins(t *testing.T) {
	s := newServer(t)
	digest := s.push(t, layered(t))
	login := func(string) (registry.Login, bool) { return registry.Login{User: "u", Password: "p"}, true }
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p"))
	for scheme, want := range map[string]string{
		`Basic realm="x"`: basic,
		`Bearer realm="` + s.URL + `/token",service="reg"`: "Bearer secret",
	} {
		s.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.URL.Path == "/token":
				if r.Header.Get("Authorization") != basic || r.URL.Query().Get("scope") != "repository:team/app:pull" {
					w.WriteHeader(http.StatusForbidden)
				}
				_, _ = io.WriteString(w, `{"token":"secret"}`)
			case r.Header.Get("Authorization") != want:
				w.Header().Set("WWW-Authenticate", scheme)
				w.WriteHeader(http.StatusUnauthorized)
			default:
				return false
			}
			return true
		})
		cfg := s.config(t)
		reason := "initdata has none"
		if strings.HasPrefix(scheme, "Bearer") {
			reason = "403"
		}
		refuse(t, cfg, s.repository(), digest, reason)
		cfg.Registry.Login = login
		if got, err := Image(t.Context(), cfg, s.repository(), digest); err != nil || len(got) != 3 {
			t.Errorf("%s: Image() = %v, %v", scheme, got, err)
		}
	}
}
