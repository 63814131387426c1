// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/attestation/kbs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// attester puts the digest into its evidence, as a TEE does.
type attester struct{ err error }

func (a attester) TEE() string { return "sample" }

func (a attester) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	return fmt.Appendf(nil, `{"report_data":%q}`, hex.EncodeToString(digest)), a.err
}

// broker is a small broker. It accepts all evidence that is bound to its nonce.
type broker struct {
	t *testing.T
	// answer, if not nil, answers instead, unless it returns false.
	answer func(w http.ResponseWriter, r *http.Request, n int) bool

	mu       sync.Mutex
	requests []string
	nonce    string
	key      *kbs.PublicKey
	token    string
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, r.Method+" "+r.URL.Path)
	if b.answer != nil && b.answer(w, r, len(b.requests)) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		b.t.Error(err)
	}
	switch r.URL.Path {
	case "/kbs/v0/auth":
		raw := make([]byte, 32)
		_, _ = rand.Read(raw)
		b.nonce = base64.StdEncoding.EncodeToString(raw)
		http.SetCookie(w, &http.Cookie{Name: kbs.Cookie, Value: "s1", Path: "/"})
		fmt.Fprintf(w, `{"nonce":%q,"extra-params":""}`, b.nonce)
	case "/kbs/v0/attest":
		a, err := kbs.ParseAttestation(body)
		if err != nil || a.Nonce != b.nonce || r.Header.Get("Cookie") != kbs.Cookie+"=s1" {
			b.t.Errorf("attestation %s: %v", body, err)
			return
		}
		digest, err := a.Digest()
		if err != nil || !bytes.Contains(a.Primary, []byte(hex.EncodeToString(digest[:]))) {
			b.t.Errorf("evidence %s is not for %x: %v", a.Primary, digest, err)
		}
		b.key = a.Key
		b.token = fmt.Sprintf("a.b%d.c", len(b.requests))
		fmt.Fprintf(w, `{"token":%q}`, b.token)
	default:
		if r.Header.Get("Authorization") != "Bearer "+b.token {
			fail(w, 401, kbs.TokenVerifierError, "expired")
			return
		}
		text, err := b.key.Seal([]byte("secret of " + r.URL.Path))
		if err != nil {
			b.t.Error(err)
		}
		_, _ = w.Write(text)
	}
}

func fail(w http.ResponseWriter, status int, of kbs.ErrorType, detail string) {
	text, _ := json.Marshal(&kbs.Error{Type: of, Detail: detail})
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// start serves a broker, and returns a client that trusts it.
func start(t *testing.T, b *broker, edit func(*Config)) *Client {
	t.Helper()
	b.t = t
	s := httptest.NewUnstartedServer(b)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	cfg := Config{
		URL: s.URL, Attester: attester{}, Timeout: 20 * time.Second,
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestSecretsArrive(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1") // the host's environment is not asked
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	for _, k := range []kbs.Kind{"", kbs.P521, kbs.RSA} {
		b := &broker{}
		c := start(t, b, func(c *Config) { c.Key, c.InitData = k, "version = \"0.1.0\"" })
		for _, path := range []string{"a/b/c", "kbs:///a/b/d"} {
			got, err := c.Resource(t.Context(), path)
			want := "secret of /kbs/v0/resource/" + strings.TrimPrefix(path, "kbs:///")
			if err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", k, got, err)
			}
		}
		if len(b.requests) != 4 { // one handshake
			t.Errorf("requests: %v", b.requests)
		}
		if tok, err := c.Token(t.Context()); err != nil || tok.JWT != b.token || len(b.requests) != 6 {
			t.Errorf("token %v, %v", tok, err)
		}
	}
}

// A broker that does not know the token any more gets new evidence, once.
func TestStaleTokens(t *testing.T) {
	b := &broker{}
	c := start(t, b, nil)
	if _, err := c.Resource(t.Context(), "a/b/c"); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.token = "another.token.is"
	b.mu.Unlock()
	if _, err := c.Resource(t.Context(), "a/b/c"); err != nil || len(b.requests) != 7 {
		t.Errorf("%v: %v", b.requests, err)
	}
	b.answer = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/resource/") {
			fail(w, 401, kbs.TokenVerifierError, "never")
			return true
		}
		return false
	}
	before := len(b.requests)
	var e *Error
	_, err := c.Resource(t.Context(), "a/b/c")
	if !errors.As(err, &e) || e.Reason != Refused || len(b.requests) != before+4 {
		t.Errorf("%v: %v", b.requests[before:], err)
	}
}

// Each answer that a repeat cannot change is returned after one request.
func TestAnswersThatAreFinal(t *testing.T) {
	at := func(path string, do func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if !strings.Contains(r.URL.Path, path) {
				return false
			}
			do(w)
			return true
		}
	}
	with := func(status int, of kbs.ErrorType) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { fail(w, status, of, "detail") }
	}
	for name, tc := range map[string]struct {
		path string
		do   func(http.ResponseWriter)
		want Reason
	}{
		"denied, as Trustee says it":     {"/resource", with(401, kbs.PolicyDeny), Denied},
		"denied, as we say it":           {"/resource", with(403, kbs.PolicyDeny), Denied},
		"absent, as Trustee says it":     {"/resource", with(401, kbs.PluginInternal), NotFound},
		"absent, as we say it":           {"/resource", with(404, kbs.PluginInternal), NotFound},
		"evidence refused, Trustee":      {"/attest", with(401, kbs.AttestationError), Refused},
		"evidence refused, ours":         {"/attest", with(403, kbs.AttestationError), Refused},
		"version":                        {"/auth", with(400, kbs.AttestationError), Refused},
		"garbage instead of a challenge": {"/auth", func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }, Untrusted},
		"challenge without a cookie": {"/auth", func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"nonce":%q}`, base64.StdEncoding.EncodeToString(make([]byte, 32)))
		}, Untrusted},
		"garbage instead of a token":  {"/attest", func(w http.ResponseWriter) { fmt.Fprint(w, `{"token":"x"}`) }, Untrusted},
		"garbage instead of a secret": {"/resource", func(w http.ResponseWriter) { fmt.Fprint(w, `{}`) }, Untrusted},
		"garbage instead of an error": {"/resource", func(w http.ResponseWriter) { w.WriteHeader(400) }, Untrusted},
		"endless": {"/resource", func(w http.ResponseWriter) {
			_, _ = w.Write(make([]byte, maxAnswer+1))
		}, Untrusted},
		"redirect": {"/resource", func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(302)
		}, Untrusted},
	} {
		b := &broker{answer: at(tc.path, tc.do)}
		c := start(t, b, nil)
		got, err := c.Resource(t.Context(), "a/b/c")
		var e *Error
		if got != nil || !errors.As(err, &e) || e.Reason != tc.want {
			t.Errorf("%s: %q, %v, want %s", name, got, err, tc.want)
		}
		hits := 0
		for _, r := range b.requests {
			if strings.Contains(r, tc.path) {
				hits++
			}
		}
		if hits != 1 {
			t.Errorf("%s: asked %d times", name, hits)
		}
	}
}

func TestEmptySecretsAreRefused(t *testing.T) {
	b := &broker{}
	b.answer = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.Contains(r.URL.Path, "/resource/") {
			return false
		}
		text, err := b.key.Seal(nil)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(text)
		return true
	}
	if got, err := start(t, b, nil).Resource(t.Context(), "a/b/c"); err == nil {
		t.Errorf("got %q", got)
	}
}

// A broker that asks for patience gets it, up to the deadline.
func TestPatience(t *testing.T) {
	for _, status := range []int{429, 503, 500} {
		b := &broker{answer: func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n > 2 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			fail(w, status, kbs.HTTPFailed, "busy")
			return true
		}}
		begin := time.Now()
		if _, err := start(t, b, nil).Resource(t.Context(), "a/b/c"); err != nil || time.Since(begin) < 2*time.Second {
			t.Errorf("%d: %v after %s", status, err, time.Since(begin))
		}
	}
	b := &broker{answer: func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.Header().Set("Retry-After", "3600")
		fail(w, 429, kbs.HTTPFailed, "busy")
		return true
	}}
	var e *Error
	_, err := start(t, b, nil).Resource(t.Context(), "a/b/c")
	if !errors.As(err, &e) || e.Reason != Unavailable || len(b.requests) != 1 || !strings.Contains(err.Error(), "busy") {
		t.Errorf("%v: %v", b.requests, err)
	}
}

func TestNoBroker(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts and says nothing
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for name, addr := range map[string]string{"silent": l.Addr().String(), "gone": gone.Addr().String()} {
		c := start(t, &broker{}, func(c *Config) { c.URL, c.Timeout = "https://"+addr, time.Second })
		begin := time.Now()
		_, err := c.Resource(t.Context(), "a/b/c")
		var e *Error
		if !errors.As(err, &e) || e.Reason != Unavailable || time.Since(begin) > 5*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(begin))
		}
	}
}

func TestNoEvidence(t *testing.T) {
	c := start(t, &broker{}, func(c *Config) { c.Attester = attester{errors.New("no TEE")} })
	var e *Error
	if _, err := c.Resource(t.Context(), "a/b/c"); !errors.As(err, &e) || e.Reason != NoEvidence {
		t.Errorf("%v", err)
	}
}

// made is a certificate with its key.
type made struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate that is valid in a year; parent nil makes a CA.
func issue(t *testing.T, parent *made, name string, from time.Time) *made {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		BasicConstraintsValid: true, IsCA: parent == nil,
	}
	m := &made{key: k}
	if parent == nil {
		parent = &made{c, k}
		c.KeyUsage = x509.KeyUsageCertSign
	} else {
		c.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, k.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	if m.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return m
}

// A broker with another certificate gets no request at all, and one that speaks plain HTTP neither.
func TestForeignBrokers(t *testing.T) {
	b := &broker{}
	foreign := issue(t, nil, "ca", time.Now())
	c := start(t, b, func(c *Config) {
		c.CertPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: foreign.cert.Raw})
	})
	var e *Error
	if _, err := c.Resource(t.Context(), "a/b/c"); !errors.As(err, &e) || e.Reason != Untrusted || len(b.requests) != 0 {
		t.Errorf("%v: %v", b.requests, err)
	}
	plain := httptest.NewServer(b)
	defer plain.Close()
	c = start(t, &broker{}, func(c *Config) { c.URL = "https://" + plain.Listener.Addr().String() })
	if _, err := c.Resource(t.Context(), "a/b/c"); !errors.As(err, &e) || e.Reason != Untrusted || len(b.requests) != 0 {
		t.Errorf("%v: %v", b.requests, err)
	}
	old := httptest.NewUnstartedServer(b)
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	old.StartTLS()
	defer old.Close()
	c = start(t, &broker{}, func(c *Config) {
		c.URL = old.URL
		c.CertPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Certificate().Raw})
	})
	if _, err := c.Resource(t.Context(), "a/b/c"); !errors.As(err, &e) || e.Reason != Untrusted || len(b.requests) != 0 {
		t.Errorf("%v: %v", b.requests, err)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	ca := issue(t, nil, "ca", time.Now())
	block := func(kind string) []byte {
		return []byte("-----BEGIN " + kind + "-----\nAAAA\n-----END " + kind + "-----\n")
	}
	good := Config{
		URL: "https://kbs.example", Attester: attester{},
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}),
	}
	for name, edit := range map[string]func(*Config){
		"http":        func(c *Config) { c.URL = "http://kbs.example" },
		"user":        func(c *Config) { c.URL = "https://user@kbs.example" },
		"query":       func(c *Config) { c.URL = "https://kbs.example?x" },
		"no host":     func(c *Config) { c.URL = "https://" },
		"no cert":     func(c *Config) { c.CertPEM = nil },
		"bad cert":    func(c *Config) { c.CertPEM = block("CERTIFICATE") },
		"a key":       func(c *Config) { c.CertPEM = block("PRIVATE KEY") },
		"no attester": func(c *Config) { c.Attester = nil },
		"key":         func(c *Config) { c.Key = "P-384" },
	} {
		cfg := good
		edit(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
