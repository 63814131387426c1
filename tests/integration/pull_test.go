// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
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
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/coco-shim/coco/image/resolve"
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

// push puts an image into the registry, and returns what a policy pins of it.
func (r *podRegistry) push(t *testing.T, im testimage.Image) policy.Image {
	t.Helper()
	img, err := im.Build()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(r.cert))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	ref, err := name.ParseReference(r.host + "/team/app:1")
	if err == nil {
		err = remote.Write(ref, img, remote.WithTransport(transport))
	}
	if err != nil {
		t.Fatal(err)
	}
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

	// A policy with other root hashes than the image has: the layer is not mounted.
	r.behave(nil)
	p.Containers[0].Image.Layers[0] = strings.Repeat("0", 64)
	refused(t, runIn(t, d, netns, r.config(t, p), command...), "layer 1 of 2 from the top has root hash ",
		"and the policy has 0000")
}
