// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/azure/akv"
	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/internal/testvm"
)

// azkeys builds the program on Microsoft's client for Go. Its module is not coco's, and is fetched by make setup.
func azkeys(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "azkeys")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir, build.Env = filepath.Join(testvm.RepoRoot(), "tests/azkeys"), append(os.Environ(), "GOPROXY=off")
	out, err := build.CombinedOutput()
	absent := bytes.Contains(out, []byte("module lookup disabled")) && os.Getenv("COCO_REQUIRE") != "all"
	switch {
	case err != nil && absent:
		t.Skipf("the modules of tests/azkeys are absent (cd tests/azkeys && go mod download): %.300s", out)
	case err != nil:
		t.Fatalf("build tests/azkeys: %v: %s", err, out)
	}
	return bin
}

// Microsoft's client for Go imports, gets, changes and releases keys of the fakes, and what it gets opens with our
// client's checks.
func TestMicrosoftsGoClientWorksAgainstTheFakes(t *testing.T) {
	bin := azkeys(t)
	w := newWorld(t, nil)
	token, _, err := w.attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(w.fake.CA())
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, s := range []fake.Service{fake.Vault, fake.HSM} {
		in, err := json.Marshal(map[string]any{
			"vault": w.fake.URL(s), "metadata": w.fake.URL(fake.Metadata), "ca": string(w.fake.CA()), "now": snptest.Now,
			"key": secret, "policy": w.policy(nil), "otherPolicy": w.policy(cond(1, "00")), "token": token,
		})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), bin)
		cmd.Env = append(os.Environ(), "NO_PROXY=localhost", "no_proxy=localhost")
		var stderr bytes.Buffer
		cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
		text, err := cmd.Output()
		if err != nil {
			t.Fatalf("azkeys: %v: %s", err, &stderr)
		}
		var got struct {
			ID, Got  string
			Released map[string]string
			Refused  int
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if !strings.HasPrefix(got.ID, w.fake.URL(s)+"/keys/from-go/") || got.Got != got.ID || len(got.Released) != 3 ||
			got.Refused != 403 {
			t.Errorf("%s: %+v", s, got)
		}
		for wrap, jws := range got.Released {
			r, err := akv.Verify(jws, asked(t, jws), roots, azhttp.Time{At: snptest.Now, Source: "guest"})
			if err != nil {
				t.Fatalf("%s: %v", wrap, err)
			}
			k, err := r.Unwrap(w.key)
			if err != nil || string(r.Request.Wrap) != wrap || !bytes.Equal(k.Material, secret) {
				t.Errorf("%s: %v, %v", wrap, k, err)
			}
		}
	}
}

// asked is the request that a JWS repeats: the client chose it.
func asked(t *testing.T, jws string) akv.Request {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(jws, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var p struct{ Request akv.Request }
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p.Request
}
