// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/coco-shim/coco/internal/testimage"
)

// Registry serves images over TLS on 127.0.0.1:443 under the names that a foreign test suite has
// built in. A process sees it inside a mount namespace whose /etc/hosts is Hosts and with Cert as
// its trust store.
type Registry struct {
	Hosts, Cert string // files
	listener    net.Listener
	server      *http.Server
}

// NewRegistry serves the images, keyed by reference, from files below dir.
func NewRegistry(dir string, images map[string]testimage.Image) (*Registry, error) {
	names := map[string]bool{}
	for ref := range images {
		names[strings.SplitN(ref, "/", 2)[0]] = true
	}
	var hosts []string
	for n := range names {
		hosts = append(hosts, n)
	}
	cert, certPEM, err := selfSigned(hosts)
	if err != nil {
		return nil, err
	}
	r := &Registry{Hosts: filepath.Join(dir, "hosts"), Cert: filepath.Join(dir, "registry.pem")}
	if err := os.WriteFile(r.Hosts, []byte("127.0.0.1 localhost "+strings.Join(hosts, " ")+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(r.Cert, certPEM, 0o644); err != nil {
		return nil, err
	}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if err := fill(handler, images); err != nil {
		return nil, err
	}
	if r.listener, err = net.Listen("tcp", "127.0.0.1:443"); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r.server = &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go func() { _ = r.server.ServeTLS(r.listener, "", "") }()
	return r, nil
}

// Close stops serving.
func (r *Registry) Close() error { return r.server.Close() }

// fill pushes the images through a plain local listener: the registry keeps them in memory.
func fill(handler http.Handler, images map[string]testimage.Image) error {
	local := httptest.NewServer(handler)
	defer local.Close()
	for ref, im := range images {
		img, err := im.Build()
		if err != nil {
			return err
		}
		path := strings.SplitN(ref, "/", 2)[1]
		to, err := name.ParseReference(strings.TrimPrefix(local.URL, "http://")+"/"+path, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(to, img); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

func selfSigned(hosts []string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "coco test registry"}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
