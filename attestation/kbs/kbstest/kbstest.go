// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kbstest is a small key broker for tests. It accepts all evidence, releases its secrets, and misbehaves on
// demand: it is gone, slow or busy, answers garbage, or shows another certificate. Tests that decide on evidence use
// the real broker (attestation/broker).
package kbstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/kbs"
)

// Broker is a broker that runs until its test ends.
type Broker struct {
	t    testing.TB
	host string
	port int
	life chan struct{} // closed at the end of the test

	mu      sync.Mutex
	cert    tls.Certificate   // guarded by mu
	secrets map[string]string // guarded by mu; by path
	mood    Mood              // guarded by mu
	nonce   string            // guarded by mu
	token   string            // guarded by mu; of the last attestation
	key     *kbs.PublicKey    // guarded by mu; of the last attestation
	asked   int               // guarded by mu; connections since the last change of the mood
}

// Start starts a broker on 127.0.0.1, which clients reach as host, an address. secrets are by repository/type/tag.
func Start(t testing.TB, host string, secrets map[string]string) *Broker {
	t.Helper()
	b := &Broker{t: t, host: host, secrets: secrets, life: make(chan struct{})}
	b.ChangeCertificate()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.port = l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a listener for tcp
	srv := &http.Server{
		Handler: b, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				return &b.cert, nil
			},
		},
	}
	srv.SetKeepAlivesEnabled(false) // so that a mood meets each request
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.ServeTLS(&listener{l, b}, "", ""); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("broker: %v", err)
		}
	}()
	t.Cleanup(func() {
		close(b.life)
		if err := srv.Close(); err != nil {
			t.Errorf("broker: %v", err)
		}
		<-ended
	})
	return b
}

// URL is the broker's URL for its clients.
func (b *Broker) URL() string { return "https://" + net.JoinHostPort(b.host, strconv.Itoa(b.port)) }

// CertPEM is the certificate that the broker shows.
func (b *Broker) CertPEM() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.cert.Certificate[0]})
}

// ChangeCertificate makes a certificate of the same name with another key. It is valid for a year from now.
func (b *Broker) ChangeCertificate() {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "kbstest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IPAddresses: []net.IP{net.ParseIP(b.host)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Set changes a secret.
func (b *Broker) Set(path, secret string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.secrets[path] = secret
}

// Behave changes the broker's mood. The zero Mood is that of a good broker.
func (b *Broker) Behave(m Mood) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mood, b.asked = m, 0
}

// Asked is how many connections there were since the mood changed.
func (b *Broker) Asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

// ServeHTTP answers as the mood says, or by the protocol.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	mood, n := b.mood, b.asked
	b.mu.Unlock()
	if mood.answer != nil && mood.answer(w, r, n, b.life) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = b.answer(w, r, body, mood.empty)
	}
	if err != nil {
		b.t.Errorf("broker, %s %s: %v", r.Method, r.URL.Path, err)
	}
}

// answer answers by the protocol.
func (b *Broker) answer(w http.ResponseWriter, r *http.Request, body []byte, empty bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, kbs.Prefix)
	switch {
	case !ok:
		return errors.New("no path of the protocol")
	case path == "/auth":
		b.nonce = random()
		http.SetCookie(w, &http.Cookie{Name: kbs.Cookie, Value: "s1", Path: "/"})
		_, err := fmt.Fprintf(w, `{"nonce":%q,"extra-params":""}`, b.nonce)
		return err
	case path == "/attest":
		a, err := kbs.ParseAttestation(body)
		if err != nil || a.Nonce != b.nonce {
			return fmt.Errorf("nonce %q for %q: %w", a.Nonce, b.nonce, err)
		}
		b.key, b.token = a.Key, "e30."+strings.TrimRight(random(), "=")+".c2ln"
		b.token = strings.NewReplacer("+", "-", "/", "_").Replace(b.token)
		_, err = fmt.Fprintf(w, `{"token":%q}`, b.token)
		return err
	case b.token == "" || r.Header.Get("Authorization") != "Bearer "+b.token:
		return fail(w, http.StatusUnauthorized, kbs.TokenVerifierError, "the token is not the last one")
	}
	secret, ok := b.secrets[strings.TrimPrefix(path, "/resource/")]
	if !ok {
		return fail(w, http.StatusNotFound, kbs.PluginInternal, "no such resource")
	}
	if empty {
		secret = ""
	}
	text, err := b.key.Seal([]byte(secret))
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// random is 32 random bytes in base64.
func random() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	return base64.StdEncoding.EncodeToString(raw)
}

func fail(w http.ResponseWriter, status int, of kbs.ErrorType, detail string) error {
	text, err := json.Marshal(&kbs.Error{Type: of, Detail: detail})
	if err != nil {
		return err
	}
	w.WriteHeader(status)
	_, err = w.Write(text)
	return err
}
