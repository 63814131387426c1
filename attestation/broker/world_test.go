// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/broker/audit"
	"github.com/coco-shim/coco/attestation/broker/evidence"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/internal/initdata"
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// world is a broker with its server, and a platform that it can verify.
type world struct {
	t     testing.TB
	b     *Broker
	srv   *httptest.Server
	made  *snptest.Made
	doc   *initdata.Document
	clock *clock
	admin string
	audit string
	log   *bytes.Buffer
}

// begin starts a broker with reference values for the platform, if known, and the secret default/db/password.
func begin(t testing.TB, known bool, edit func(*Config)) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{at: snptest.Now}, log: &bytes.Buffer{}, made: snptest.Make(t, snptest.Spec{})}
	var err error
	files := map[string]string{"policy.coco": "a policy", "aa.toml": "x = 1\n"}
	if w.doc, err = initdata.New("sha256", files); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "state"), store.Secret{KeyFile: bytes.Repeat([]byte{1}, 32)}, w.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w.audit = filepath.Join(dir, "audit")
	a, err := audit.Open(w.audit, w.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	docs := &collateral.Store{Dir: filepath.Join(dir, "collateral"), Now: w.clock.now}
	requests, err := snp.Requests(w.made.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if r.Kind == snp.KindCRL {
			path := filepath.Join(docs.Dir, r.Name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, w.made.List, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cfg := Config{
		Store: s, Audit: a, Issuer: "https://kbs.example", Now: w.clock.now,
		Evidence: &evidence.Verifiers{SNP: w.made.Verifier, Collateral: docs, Now: w.clock.now},
		Log:      slog.New(slog.NewTextHandler(w.log, nil)),
	}
	if edit != nil {
		edit(&cfg)
	}
	if w.b, err = New(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if w.admin, err = w.b.AdminToken(AdminRole); err != nil {
		t.Fatal(err)
	}
	w.srv = httptest.NewUnstartedServer(w.b.Handler())
	w.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.srv.StartTLS()
	t.Cleanup(w.srv.Close)
	w.must("POST", "/kbs/v0/resource/default/db/password", []byte("a secret"))
	if known {
		w.must("POST", "/kbs/v0/reference-value", w.references(nil))
	}
	return w
}

// references is a message with the values of the platform.
func (w *world) references(more map[string]any) []byte {
	values := map[string]any{
		"snp_launch_measurement": []string{hex.EncodeToString(w.made.Evidence.Report[0x90:0xC0])},
		"snp_minimum_tcb":        map[string]any{"Milan": map[string]int{"bootloader": 4, "tee": 1, "snp": 24}},
		"init_data":              []string{hex.EncodeToString(w.doc.Digest())},
	}
	payload, err := json.Marshal(values)
	if err != nil {
		w.t.Fatal(err)
	}
	m := map[string]any{"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload)}
	for k, v := range more {
		m[k] = v
	}
	text, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// ask sends a request with a token.
func (w *world) ask(method, path, token string, body []byte, header ...string) (int, []byte) {
	w.t.Helper()
	req, err := http.NewRequest(method, w.srv.URL+path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.srv.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, text
}

func (w *world) must(method, path string, body []byte) []byte {
	w.t.Helper()
	status, text := w.ask(method, path, w.admin, body)
	if status != http.StatusOK {
		w.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	return text
}

// attester is a guest of the platform. Edit changes the report before the platform signs it.
type attester struct {
	w    *world
	edit func([]byte)
}

func (a attester) TEE() string { return "snp" }

func (a attester) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	return json.Marshal(snptest.Wire(a.w.made.Again(a.w.t, func(r []byte) {
		clear(r[0x50:0x90])
		copy(r[0x50:], digest)
		copy(r[0xC0:0xE0], a.w.doc.Digest())
		if a.edit != nil {
			a.edit(r)
		}
	}), snp.Milan))
}

func (w *world) config() client.Config {
	return client.Config{
		URL: w.srv.URL, Attester: attester{w: w}, InitData: string(w.doc.Text), Timeout: 20 * time.Second,
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.srv.Certificate().Raw}),
	}
}

func (w *world) client(edit func(*client.Config)) *client.Client {
	w.t.Helper()
	cfg := w.config()
	if edit != nil {
		edit(&cfg)
	}
	c, err := client.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// reason returns why a client got nothing, with the message.
func reason(err error) (client.Reason, string) {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Reason, err.Error()
	}
	return "", fmt.Sprint(err)
}
