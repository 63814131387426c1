// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/kbs"
)

// kbsServer answers like a broker that accepts any evidence with the right digest.
func kbsServer(t *testing.T) (url, cert string) {
	t.Helper()
	var key *kbs.PublicKey
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch r.URL.Path {
		case "/kbs/v0/auth":
			http.SetCookie(w, &http.Cookie{Name: kbs.Cookie, Value: "s"})
			fmt.Fprintf(w, `{"nonce":%q,"extra-params":""}`, base64.StdEncoding.EncodeToString(make([]byte, 32)))
		case "/kbs/v0/attest":
			a, err := kbs.ParseAttestation(body)
			if err != nil {
				t.Error(err)
				return
			}
			d, err := a.Digest()
			if err != nil {
				t.Error(err)
			}
			text := string(a.Primary)
			if !strings.Contains(text, hex.EncodeToString(d[:])) &&
				!strings.Contains(text, base64.StdEncoding.EncodeToString(d[:])) {
				t.Errorf("evidence %s is not for %x", text, d)
			}
			key = a.Key
			fmt.Fprint(w, `{"token":"a.b.c"}`)
		case "/kbs/v0/resource/a/b/c":
			text, err := key.Seal([]byte("secret"))
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(text)
		default:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"no"}`)
		}
	}))
	t.Cleanup(s.Close)
	cert = filepath.Join(t.TempDir(), "cert.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(cert, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL, cert
}

// run runs coco kbs.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	cmd.SilenceUsage = true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func exit(err error) int {
	if c, ok := err.(interface{ ExitCode() int }); ok {
		return c.ExitCode()
	}
	if err != nil {
		return 1
	}
	return 0
}

func TestGet(t *testing.T) {
	url, cert := kbsServer(t)
	evidence := filepath.Join(t.TempDir(), "evidence")
	script := "#!/bin/sh\nprintf '{\"quote\":\"%s\"}' \"$1\"\n"
	if err := os.WriteFile(evidence, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "secret")
	base := []string{"get", "--url", url, "--cert", cert}
	tee := slices.Clip(append(slices.Clip(base), "--tee", "snp", "--evidence-program", evidence))
	base = slices.Clip(base)
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"secret":            {append(tee, "a/b/c"), 0, "secret"},
		"sample":            {append(base, "--insecure-sample", "a/b/c"), 0, "secret"},
		"RSA":               {append(tee, "--key", string(kbs.RSA), "kbs:///a/b/c"), 0, "secret"},
		"token":             {append(tee, "--token"), 0, "a.b.c\n"},
		"denied":            {append(tee, "a/b/d"), 5, ""},
		"no path":           {tee, 1, ""},
		"path and token":    {append(tee, "--token", "a/b/c"), 1, ""},
		"no evidence":       {append(base, "a/b/c"), 1, ""},
		"two evidences":     {append(tee, "--insecure-sample", "a/b/c"), 1, ""},
		"program fails":     {append(base, "--tee", "snp", "--evidence-program", "/bin/false", "a/b/c"), 7, ""},
		"program says less": {append(base, "--tee", "snp", "--evidence-program", "/bin/true", "a/b/c"), 7, ""},
		"no such kind":      {append(tee, "--key", "P-384", "a/b/c"), 1, ""},
		"bad path":          {append(tee, "a/b"), 1, ""},
		"key without token": {append(tee, "--token-key", "a/b/c"), 1, ""},
	} {
		got, err := run(t, tc.args...)
		if exit(err) != tc.code || got != tc.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := run(t, append(tee, "-o", out, "a/b/c")...); err != nil || got != "" {
		t.Errorf("%q, %v", got, err)
	}
	b, err := os.ReadFile(out)
	info, errStat := os.Stat(out)
	if err != nil || errStat != nil || string(b) != "secret" || info.Mode().Perm() != 0o600 {
		t.Errorf("%q, %v, %v", b, err, info)
	}
	text, err := run(t, append(tee, "--token", "--token-key")...)
	var doc struct{ Token, TEE_Keypair string } //nolint:revive // the member's name
	if err != nil || json.Unmarshal([]byte(text), &doc) != nil || !strings.Contains(doc.TEE_Keypair, "PRIVATE KEY") {
		t.Errorf("%s, %v", text, err)
	}
}
