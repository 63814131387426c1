// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nodetpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
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
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation/broker"
	"github.com/coco-shim/coco/attestation/broker/audit"
	"github.com/coco-shim/coco/attestation/broker/evidence"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/guest"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpmca"
	"github.com/coco-shim/coco/internal/tpm2"
)

// keyBroker is our broker, which trusts the CA in a directory.
type keyBroker struct {
	t     *testing.T
	srv   *httptest.Server
	admin string
}

func newBroker(t *testing.T, ca string) *keyBroker {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "state"), store.Secret{KeyFile: bytes.Repeat([]byte{1}, 32)}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	a, err := audit.Open(filepath.Join(dir, "audit"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	root, err := os.ReadFile(filepath.Join(ca, tpmca.CertFile))
	if err != nil {
		t.Fatal(err)
	}
	v := &evidence.Verifiers{
		Collateral: &collateral.Store{Now: time.Now}, Now: time.Now, TPMRoots: x509.NewCertPool(),
		TPMSelection: tpm.Selection{Bank: crypto.SHA256},
	}
	v.TPMRoots.AppendCertsFromPEM(root)
	for n := range tpm2.PCRs {
		v.TPMSelection.PCRs = append(v.TPMSelection.PCRs, n)
	}
	b, err := broker.New(context.Background(), broker.Config{
		Store: s, Audit: a, Issuer: "https://kbs.example", Now: time.Now, Evidence: v, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	k := &keyBroker{t: t, srv: httptest.NewUnstartedServer(b.Handler())}
	if k.admin, err = b.AdminToken(broker.AdminRole); err != nil {
		t.Fatal(err)
	}
	k.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	k.srv.StartTLS()
	t.Cleanup(k.srv.Close)
	return k
}

// post sends a request of the administrator.
func (k *keyBroker) post(path string, body []byte) {
	k.t.Helper()
	req, err := http.NewRequestWithContext(k.t.Context(), http.MethodPost, k.srv.URL+path, bytes.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.admin)
	resp, err := k.srv.Client().Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		k.t.Fatalf("%s: %s, %s, %v", path, resp.Status, text, err)
	}
}

// secret asks for the secret as a guest with a TPM.
func (k *keyBroker) secret(device tpm2.TPM, initdata string) (string, error) {
	k.t.Helper()
	c, err := client.New(client.Config{
		URL: k.srv.URL, InitData: initdata, Timeout: 20 * time.Second,
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.srv.Certificate().Raw}),
		Attester: &guest.TPM{Open: func() (tpm2.TPM, func() error, error) {
			return device, func() error { return nil }, nil
		}},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	defer c.Close()
	b, err := c.Resource(k.t.Context(), "default/db/password")
	return string(b), err
}

// boot extends a TPM as firmware, kernel and agent do, of which the command line and the initdata differ.
func boot(t *testing.T, device tpm2.TPM, cmdline, initdata string) {
	t.Helper()
	for pcr, text := range map[int]string{0: "firmware", 4: "kernel", 9: cmdline, 8: initdata} {
		if err := device.Extend(pcr, sha256.Sum256([]byte(text))); err != nil {
			t.Fatal(err)
		}
	}
}

// A broker with the reference values of one boot gives its secret to a guest that booted so, on a node that it trusts.
func TestASecretGoesToWhatWasMeasured(t *testing.T) {
	dir := t.TempDir()
	ca, foreign := filepath.Join(dir, "ca"), filepath.Join(dir, "foreign")
	for _, d := range []string{ca, foreign} {
		if _, err := run(t, "--dir", d); err != nil {
			t.Fatal(err)
		}
	}
	const doc = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.coco\" = \"%s\"\n"
	initdata, other := fmt.Sprintf(doc, "a policy"), fmt.Sprintf(doc, "another policy")
	k := newBroker(t, ca)
	k.post("/kbs/v0/resource/default/db/password", []byte("a secret"))
	good := pod(t, ca)
	boot(t, good, "quiet", initdata)
	if got, err := k.secret(good, initdata); err == nil {
		t.Errorf("without reference values: %q", got)
	}
	digest := sha256.Sum256([]byte(initdata))
	values := map[string][]string{"init_data": {hex.EncodeToString(digest[:])}}
	for n := range 10 {
		v, err := good.PCR(n)
		if err != nil {
			t.Fatal(err)
		}
		values[fmt.Sprintf("tpm_pcr%02d", n)] = []string{hex.EncodeToString(v)}
		if n == 8 {
			values["init_data"] = append(values["init_data"], hex.EncodeToString(v))
		}
	}
	payload, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	message, err := json.Marshal(map[string]string{
		"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload),
	})
	if err != nil {
		t.Fatal(err)
	}
	k.post("/kbs/v0/reference-value", message)
	if got, err := k.secret(good, initdata); err != nil || got != "a secret" {
		t.Fatalf("the guest that was measured: %q, %v", got, err)
	}
	for _, tc := range []struct {
		name, ca, cmdline, initdata, sent string
		want                              client.Reason
	}{
		{"another command line", ca, "quiet panic=5", initdata, initdata, client.Denied},
		{"another policy", ca, "quiet", other, other, client.Denied},
		{"another policy than is said", ca, "quiet", other, initdata, client.Refused},
		{"a node that is not trusted", foreign, "quiet", initdata, initdata, client.Refused},
	} {
		device := pod(t, tc.ca)
		boot(t, device, tc.cmdline, tc.initdata)
		got, err := k.secret(device, tc.sent)
		var e *client.Error
		if !errors.As(err, &e) || e.Reason != tc.want || got != "" {
			t.Errorf("%s: %q, %v, want %q", tc.name, got, err, tc.want)
		}
	}
}
