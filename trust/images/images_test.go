// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coco-shim/coco/image/crypt"
	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/config"
	"github.com/coco-shim/coco/trust/wire"
)

// Resources of the key broker.
const (
	kid   = "kbs:///default/image-kek/app"
	login = "kbs:///default/credential/test"
)

// pod is a guest that pulls one image from a registry that wants a login.
type pod struct {
	*httptest.Server
	image     policy.Image
	cdh       string
	resources map[string]string
	needed    []string // resources that were asked for
}

const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// encrypted is an image of one layer, an empty tar, that is encrypted.
func encrypted(t *testing.T) v1.Image {
	t.Helper()
	plain := make([]byte, 1024)
	h, _, err := v1.SHA256(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	to := crypt.Recipient{Kid: kid, Key: bytes.Repeat([]byte("k"), 32)}
	e, err := crypt.Encrypt(bytes.NewReader(plain), h.String(), to)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(e)
	if err != nil {
		t.Fatal(err)
	}
	notes, err := e.Annotations()
	if err != nil {
		t.Fatal(err)
	}
	media := types.OCIUncompressedLayer + crypt.Suffix
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: plainDiff{static.NewLayer(b, media), h}, MediaType: media, Annotations: notes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// plainDiff is a layer with the diff id of its plain bytes.
type plainDiff struct {
	v1.Layer
	diff v1.Hash
}

func (l plainDiff) DiffID() (v1.Hash, error) { return l.diff, nil }

func newPod(t *testing.T) *pod {
	t.Helper()
	p := &pod{resources: map[string]string{
		kid: strings.Repeat("k", 32), login: fmt.Sprintf(`{"auths":{%%q:{"auth":%q}}}`,
			base64.StdEncoding.EncodeToString([]byte("u:p"))),
	}}
	good := gcr.New(gcr.Logger(log.New(io.Discard, "", 0)))
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, s, _ := r.BasicAuth(); (u != "u" || s != "p") && r.Method == http.MethodGet && r.URL.Path != "/v2/" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		good.ServeHTTP(w, r)
	}))
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	host := strings.TrimPrefix(p.URL, "https://")
	p.resources[login] = fmt.Sprintf(p.resources[login], host+"/team")
	ref, err := name.NewTag(host + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	img := encrypted(t)
	if err := remote.Write(ref, img, remote.WithTransport(p.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	p.image = policy.Image{Manifest: d.String(), Layers: []string{hash}, Pull: host + "/team/app", Keys: []string{kid}}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
	p.cdh = fmt.Sprintf("[image]\nextra_root_certificates = ['''\n%s''']\n"+
		"authenticated_registry_credentials_uri = \"kbs:///default/credential/test\"\n", cert)
	return p
}

// pull plays the agent, which has the resources of p, and returns the last answer.
func (p *pod) pull(t *testing.T, source string) (last wire.PullAnswer, dir string) {
	t.Helper()
	text, err := policy.Encode(&policy.Policy{
		APIVersion: policy.APIVersion, Pod: policy.Pod{Hostname: policy.Value{Is: new("h")}},
		Containers: []policy.Container{{
			Name: "a", Kind: policy.App, Restart: policy.Never, Image: p.image,
			Process: policy.Process{Args: []string{"/a"}, Cwd: "/"},
			Linux:   policy.Linux{Namespaces: []string{"mount"}, Seccomp: []string{policy.NoSeccomp}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{policy.FileName: string(text), initdata.FileCDH: p.cdh})
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	agent, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Pull(t.Context(), theirs, wire.Setup{
			Initdata: string(d.Text), Pull: &wire.Pull{Source: source, Dir: dir},
		}, Options{Transport: func(how config.Images) http.RoundTripper {
			return registry.Transport{Roots: how.Roots, Allow: func(a netip.Addr) bool { return a.IsLoopback() }}.New()
		}})
	}()
	for last.Error == nil && last.Layers == nil {
		last = wire.PullAnswer{}
		if err := wire.Read(agent, &last); err != nil {
			t.Fatal(err)
		}
		if last.Need == "" {
			continue
		}
		p.needed = append(p.needed, last.Need)
		a := wire.Answer{Secret: []byte(p.resources[last.Need])}
		if len(a.Secret) == 0 {
			a = wire.Answer{Error: &wire.Failure{Code: "denied", Text: "key broker, resource: no"}}
		}
		if err := wire.Write(agent, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	return last, dir
}

func TestAnEncryptedImageBehindALogin(t *testing.T) {
	p := newPod(t)
	got, dir := p.pull(t, p.image.Source())
	if got.Error != nil || len(got.Layers) != 1 || len(got.Layers[0].RootHash) != 64 {
		t.Fatalf("Pull() = %+v, %v", got, got.Error)
	}
	if _, err := os.Stat(filepath.Join(dir, got.Layers[0].File)); err != nil {
		t.Error(err)
	}
	if want := "[" + login + " " + kid + "]"; fmt.Sprint(p.needed) != want {
		t.Errorf("the agent was asked for %v, want %s", p.needed, want)
	}
}

func TestPullsThatFail(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*pod)
		code   string
		want   string
	}{
		"a key of another image": {
			func(p *pod) { p.image.Keys = []string{"kbs:///default/image-kek/other"} },
			wire.Image, "key " + kid + ": the policy does not list it",
		},
		"a key that is denied": {func(p *pod) { delete(p.resources, kid) }, "denied", "key broker, resource: no"},
		"no login":             {func(p *pod) { p.resources[login] = `{"auths":{}}` }, wire.Image, "wants a login"},
		"a login that is none": {
			func(p *pod) { p.resources[login] = `{"auths":{"x":{"auth":"secret"}}}` },
			wire.Image, "no auth with a name and a password",
		},
		"no CA":   {func(p *pod) { p.cdh = "" }, wire.Image, "its certificate is not trusted"},
		"no TOML": {func(p *pod) { p.cdh = "[" }, wire.Config, "cdh.toml"},
	} {
		p := newPod(t)
		c.change(p)
		got, _ := p.pull(t, p.image.Source())
		if got.Error == nil || got.Error.Code != c.code || !strings.Contains(got.Error.Text, c.want) {
			t.Errorf("%s: Pull() = %v, want %s, %s", what, got.Error, c.code, c.want)
		}
		if got.Error != nil && strings.Contains(got.Error.Text, "secret") {
			t.Errorf("%s: the error has the login: %v", what, got.Error)
		}
	}
	p := newPod(t)
	got, _ := p.pull(t, "r.example/other@sha256:"+hash)
	if got.Error == nil || !strings.Contains(got.Error.Text, "the policy has no image") {
		t.Errorf("an image that the policy has not: %v", got.Error)
	}
}

func TestTheLongestLoginCounts(t *testing.T) {
	l, err := parseLogins([]byte(`{"auths":{"r.example":{"auth":"YTox"},"r.example/team":{"auth":"Yjoy"},` +
		`"https://index.docker.io/v1/":{"auth":"Yzoz"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for repository, want := range map[string]string{
		"r.example/team/app": "b", "r.example/teams": "a", "docker.io/library/x": "c", "other.example/x": "",
	} {
		if got, _ := l.find(repository); got.User != want {
			t.Errorf("find(%s) = %q, want %q", repository, got.User, want)
		}
	}
}
