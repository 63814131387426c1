// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coco-shim/coco/image/resolve"
	"github.com/coco-shim/coco/image/sign"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/policy"
)

// podRegistry is a registry that pods reach over podNetwork. wrong handles a request in its place, and says whether it
// did.
type podRegistry struct {
	host, cert string // address and port; PEM
	good       http.Handler

	mu    sync.Mutex
	wrong func(w http.ResponseWriter, r *http.Request) bool // guarded by mu
	asked []string                                          // guarded by mu; paths
}

// startRegistry starts a registry on the host's end of the pod's cable.
func startRegistry(t *testing.T) *podRegistry {
	t.Helper()
	r := &podRegistry{good: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(brokerHost)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	r.cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	l, err := net.Listen("tcp", brokerHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	r.host = l.Addr().String()
	s := &http.Server{
		Handler: r, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.ServeTLS(l, "", "") // ends with Close
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return r
}

func (r *podRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	wrong := r.wrong
	r.asked = append(r.asked, req.URL.Path)
	r.mu.Unlock()
	if wrong == nil || !wrong(w, req) {
		r.good.ServeHTTP(w, req)
	}
}

// behave sets what the registry does wrong, and forgets what it was asked.
func (r *podRegistry) behave(wrong func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong, r.asked = wrong, nil
}

// remote are the options of a client that trusts the registry.
func (r *podRegistry) remote(t *testing.T) remote.Option {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(r.cert))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return remote.WithTransport(transport)
}

// store puts an image into the registry under a tag.
func (r *podRegistry) store(t *testing.T, tag string, img v1.Image) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/team/app:" + tag)
	if err == nil {
		err = remote.Write(ref, img, r.remote(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// push puts an image into the registry, and returns what a policy pins of it.
func (r *podRegistry) push(t *testing.T, im testimage.Image) policy.Image {
	t.Helper()
	img, err := im.Build()
	if err != nil {
		t.Fatal(err)
	}
	ref := r.store(t, "1", img)
	archive := filepath.Join(t.TempDir(), "app.tar")
	if err := im.WriteFile(archive, ref.String()); err != nil {
		t.Fatal(err)
	}
	store, err := resolve.OpenStore(archive)
	if err != nil {
		t.Fatal(err)
	}
	found, err := (&resolve.Finder{Local: []resolve.Store{store}, Offline: true}).Resolve(t.Context(), ref.String())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	layers := make([]string, len(found.Layers))
	for i, l := range found.Layers {
		layers[len(layers)-1-i] = l // a policy has the topmost first
	}
	return policy.Image{Manifest: digest.String(), Layers: layers, Pull: r.host + "/team/app"}
}

// release puts an image of a version under the tag stable, and cosign's payload of a signer for it, if there is one.
func (r *podRegistry) release(t *testing.T, im testimage.Image, version string, by *sign.Signer) {
	t.Helper()
	img, err := im.Build()
	if err != nil {
		t.Fatal(err)
	}
	img, ok := mutate.Annotations(img, map[string]string{"org.opencontainers.image.version": version}).(v1.Image)
	if !ok {
		t.Fatal("no image")
	}
	r.store(t, "stable", img)
	if by == nil {
		return
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	about := sign.Image{Repository: r.host + "/team/app", Digest: digest.String()}
	text, err := sign.Payload(about)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := by.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	statement, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: static.NewLayer(text, sign.PayloadType), MediaType: sign.PayloadType,
		Annotations: map[string]string{sign.SignatureAnnotation: base64.StdEncoding.EncodeToString(sig)},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.store(t, sign.Tag(about), statement)
}

// config is that of a pod whose initdata has a policy and the registry's CA.
func (r *podRegistry) config(t *testing.T, p *policy.Policy) string {
	t.Helper()
	d, err := initdata.New("sha256", map[string]string{
		policy.FileName:  encoded(t, p),
		initdata.FileCDH: fmt.Sprintf("[image]\nextra_root_certificates = [\"\"\"\n%s\"\"\"]\n", r.cert),
	})
	if err != nil {
		t.Fatal(err)
	}
	return plainConfig(t, string(d.Text))
}

// TestAGuestPullsItsImage: the container has the files of the registry's image, not those of the image that the host
// has under the same name, and a registry that misbehaves is refused with the reason.
func TestAGuestPullsItsImage(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	netns, command := podNetwork(t), []string{"cat", "/pulled", "/etc/hostname"}
	r := startRegistry(t)
	im, err := testimage.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	im = im.WithLayer(testimage.File{Path: "pulled", Mode: 0o644, Data: []byte("from the registry\n")},
		testimage.File{Path: "etc/hostname", Mode: 0o644, Data: []byte("in the guest\n")})
	p := policyFor(t, specOf(t, d, command...))
	p.Pod.Network = policy.Network{Interfaces: []policy.Interface{{Name: "eth0"}}, Routes: true, Neighbours: true}
	p.Pod.DNS.FromHost = true
	p.Containers[0].Image = r.push(t, im)
	config := r.config(t, p)

	r.behave(nil)
	got := runIn(t, d, netns, config, command...)
	if got.Code != 0 || got.Stdout != "from the registry\nin the guest\n" {
		t.Errorf("it runs from the registry's image: %+v", got)
	}
	if n := len(r.asked); n < 4 { // manifest, configuration, two layers
		t.Errorf("the registry was asked for %q", r.asked)
	}

	blobs := func(do http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/blobs/") {
				return false
			}
			do(w, req)
			return true
		}
	}
	r.behave(blobs(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "https://169.254.169.254/latest/meta-data", http.StatusTemporaryRedirect)
	}))
	refused(t, runIn(t, d, netns, config, command...), "[image] pull "+p.Containers[0].Image.Source(),
		"169.254.169.254 is no address of a registry")
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/manifests/") {
			return false
		}
		_, _ = io.WriteString(w, "{}")
		return true
	})
	refused(t, runIn(t, d, netns, config, command...), "the registry sent bytes with digest sha256:44136fa")

	// A later image runs under a policy with the key that has signed it, and not without a signature.
	r.behave(nil)
	signer, err := sign.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	_, public, err := signer.PEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(public)
	at := &p.Containers[0].Image
	at.SignedBy, at.Tag, at.MinVersion = base64.StdEncoding.EncodeToString(block.Bytes), "stable", "1.4"
	bySigner := r.config(t, p)
	later := im.WithLayer(testimage.File{Path: "pulled", Mode: 0o644, Data: []byte("a later one\n")})
	r.release(t, later, "1.4.1", &signer)
	got = runIn(t, d, netns, bySigner, command...)
	if got.Code != 0 || got.Stdout != "a later one\nin the guest\n" {
		t.Errorf("a later image that is signed: %+v", got)
	}
	r.release(t, later, "1.5", nil)
	refused(t, runIn(t, d, netns, bySigner, command...), "the image has no signature")
	at.SignedBy, at.Tag, at.MinVersion = "", "", ""

	// A policy with other root hashes than the image has: the layer is not mounted.
	r.behave(nil)
	p.Containers[0].Image.Layers[0] = strings.Repeat("0", 64)
	refused(t, runIn(t, d, netns, r.config(t, p), command...), "layer 1 of 2 from the top has root hash ",
		"and the policy has 0000")
}
