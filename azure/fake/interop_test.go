// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/azure/kwp"
	"github.com/coco-shim/coco/azure/release"
	"github.com/coco-shim/coco/internal/testvm"
)

// fromPython is what testdata/sdk.py prints.
type fromPython struct {
	Vault, HSM struct {
		ID, Got, Refused string
		Released         map[string]string
	}
	Issuer, Signer string
	Claims         map[string]any
	Wrapped        map[string]string
}

// Microsoft's clients import, get, change and release keys, and read what the attestation service says of itself. Other
// libraries verify the tokens, unwrap what the vault wraps, and wrap what we unwrap.
func TestMicrosoftsClientsWorkAgainstTheFakes(t *testing.T) {
	interpreter := testvm.Unpacked("python", "python3")
	const modules = "import jwt, jwcrypto, cryptography, azure.keyvault.keys, azure.security.attestation"
	if out, err := exec.Command(interpreter, "-c", modules).CombinedOutput(); err != nil {
		t.Skipf("%s lacks Microsoft's clients (tests/setup.sh python): %s", interpreter, out)
	}
	w := newWorld(t, nil)
	token, _, err := w.attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, w.fake.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(w.key)
	if err != nil {
		t.Fatal(err)
	}
	in, err := json.Marshal(map[string]any{
		"vault": w.fake.URL(fake.Vault), "hsm": w.fake.URL(fake.HSM), "entra": w.fake.URL(fake.Entra),
		"maa": w.fake.URL(fake.MAA), "ca": ca, "policy": w.policy(nil), "other_policy": w.policy(cond(1, "00")),
		"token": token, "key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), interpreter, "testdata/sdk.py")
	cmd.Env = append(os.Environ(), "NO_PROXY=localhost", "no_proxy=localhost")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sdk.py: %v: %s", err, &stderr)
	}
	var got fromPython
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for url, v := range map[string]struct {
		ID, Got, Refused string
		Released         map[string]string
	}{w.fake.URL(fake.Vault): got.Vault, w.fake.URL(fake.HSM): got.HSM} {
		if !strings.HasPrefix(v.ID, url+"/keys/from-python/") || v.Got != v.ID || v.Refused != "403 Forbidden" ||
			len(v.Released) != 3 {
			t.Errorf("%s: %+v", url, v)
		}
		for scheme, key := range v.Released {
			if key != hex.EncodeToString(secret) {
				t.Errorf("%s %s: %s", url, scheme, key)
			}
		}
	}
	if got.Issuer != w.maa.Issuer || got.Signer == "" || got.Claims[release.ClaimType] != "sevsnpvm" {
		t.Errorf("attestation service: %q %q %v", got.Issuer, got.Signer, got.Claims)
	}
	for scheme, text := range got.Wrapped {
		blob, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if key, err := kwp.UnwrapRSA(kwp.Scheme(scheme), w.key, blob); err != nil || string(key) != "from cryptography" {
			t.Errorf("%s of cryptography: %q, %v", scheme, key, err)
		}
	}
}
