// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serving is a running coco azure fake.
type serving map[string]string

func start(t *testing.T, args ...string) serving {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(w)
	cmd.SetArgs(append([]string{"fake", "--state", filepath.Join(t.TempDir(), "azure")}, args...))
	done := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		w.CloseWithError(err)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var s serving
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// put imports a key, whose policy nothing satisfies that is not SNP.
func (s serving) put(t *testing.T) {
	t.Helper()
	pem, err := os.ReadFile(s["ca"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer h.CloseIdleConnections()
	c := &azhttp.Client{Service: "test", HTTP: h}
	token, err := entra.Metadata{Client: c, URL: s["metadata"]}.Token(t.Context(), "https://vault.azure.net")
	if err != nil {
		t.Fatal(err)
	}
	policy := base64.RawURLEncoding.EncodeToString([]byte(
		`{"version":"1.0.0","anyOf":[{"authority":"` + s["maa"] + `","allOf":[{"claim":"iss","exists":true}]}]}`))
	_, err = c.Do(t.Context(), azhttp.Request{
		Method: http.MethodPut, URL: s["vault"] + "/keys/pay?api-version=7.4",
		Header: map[string]string{"Authorization": "Bearer " + token},
		Body: []byte(`{"key":{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAA"},"attributes":{"exportable":true},"release_policy":{"data":"` +
			policy + `"}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The machine of the test has no SNP: the way ends at a report that AMD's root does not know, and each step before it
// works. Package azure/fake releases keys with roots of its own.
func TestGetAgainstTheFake(t *testing.T) {
	dir := t.TempDir()
	report := make([]byte, 1184)
	copy(report, []byte{2})
	program := filepath.Join(dir, "evidence")
	if err := os.WriteFile(filepath.Join(dir, "report"), report, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\ntest ${#1} = 128 && cat "+dir+"/report\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	chain := file(t, "chain.pem", strings.Repeat("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 2))
	s := start(t, "--chain", chain, "--tcb", "0", "--faults",
		file(t, "faults", `[{"service":"maa","kind":"status","status":429,"retry_after":"0","times":1}]`))
	s.put(t)
	get := func(args ...string) error {
		_, _, err := run(t, append([]string{
			"get", "--ca", s["ca"], "--maa", s["maa"], "--metadata", s["metadata"], "--cert-cache", s["cache"],
		}, args...)...)
		return err
	}
	key := s["vault"] + "/keys/pay"
	if err := get("--evidence-program", program, key); err == nil || !strings.Contains(err.Error(), "AttestationFailed") {
		t.Errorf("get: %v", err)
	}
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"no https://VAULT", []string{"--evidence-program", program, "pay"}},
		{"--evidence-program", []string{"--evidence-program", "/bin/false", key}},
		{"--ca", []string{"--ca", program, "--evidence-program", program, key}},
		{"configfs-tsm", []string{key}},
	} {
		if tc.want == "configfs-tsm" {
			if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
				continue // a machine with a TEE
			}
		}
		if err := get(tc.args...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("get %q: %v", tc.args, err)
		}
	}
}

func TestWrongFakesAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{},
		{"--state", dir, "--port", "65535"},
		{"--state", dir, "--chain", file(t, "x", "x")},
		{"--state", dir, "--chain", file(t, "x", "x"), "--tcb", "0"},
		{"--state", dir, "--faults", file(t, "x", `[{"service":"maa","kind":"nonsense"}]`)},
		{"--state", dir, "--faults", file(t, "x", `[{"service":"maa","kind":"status"}]`)},
	} {
		var b bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := Command()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(&b)
		cmd.SetArgs(append([]string{"fake"}, args...))
		if err := cmd.ExecuteContext(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("coco azure fake %q = %s, %v", args, &b, err)
		}
		cancel()
	}
}
