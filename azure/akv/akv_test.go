// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package akv

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/kwp"
)

func TestKeysAreNamedByURLs(t *testing.T) {
	for _, text := range []string{
		"https://shop.vault.azure.net/keys/pay", "https://a.managedhsm.azure.net:8443/keys/p-1/0a",
	} {
		k, err := ParseKeyID(text)
		if err != nil || k.String() != text {
			t.Errorf("ParseKeyID(%s) = %+v, %v", text, k, err)
		}
	}
	for _, text := range []string{
		"", "http://v/keys/a", "https://v", "https://v/keys", "https://v/keys/", "https://v/secrets/a",
		"https://v/keys/a/b/c",
		"https://v/keys/a?x=1", "https://v/keys/a#x", "https://u@v/keys/a", "https://v/keys/a%2Fb", "https:///keys/a",
		"https://v/keys/" + strings.Repeat("a", 128), "https://v/keys/a/b%0a",
	} {
		if k, err := ParseKeyID(text); err == nil {
			t.Errorf("ParseKeyID(%q) = %+v", text, k)
		}
	}
}

func TestATokenGoesToItsServiceOnly(t *testing.T) {
	const challenge = `Bearer authorization="https://login.example/t", resource="https://vault.azure.net"`
	if got, err := audience(challenge, "shop.vault.azure.net"); err != nil || got != "https://vault.azure.net" {
		t.Errorf("audience() = %q, %v", got, err)
	}
	scope := `Bearer authorization="https://login.example/t", scope="https://managedhsm.azure.net/.default"`
	if got, err := audience(scope, "a.managedhsm.azure.net"); err != nil || got != "https://managedhsm.azure.net" {
		t.Errorf("audience() = %q, %v", got, err)
	}
	for _, host := range []string{"shop.vault.azure.net.example", "evilvault.azure.net", "example", "azure.net"} {
		if got, err := audience(challenge, host); err == nil {
			t.Errorf("%s gets a token for %s", host, got)
		}
	}
	for _, text := range []string{
		"", "Basic realm=x", "Bearer", `Bearer resource=""`, `Bearer resource="http://vault.azure.net"`, `Bearer resource="https://"`,
	} {
		if got, err := audience(text, "vault.azure.net"); err == nil {
			t.Errorf("audience(%q) = %q", text, got)
		}
	}
}

func TestReleasedKeysHideThemselves(t *testing.T) {
	k := &Key{KID: "https://v/keys/a", Material: []byte("canary")}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, k); strings.Contains(s, "canary") || strings.Contains(s, "99, 97") {
			t.Errorf("%s prints %s", format, s)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("")
	f.Add("e30.e30.AA")
	f.Add("eyJhbGciOiJSUzI1NiIsIng1YyI6WyJBQSJdfQ.e30.AA")
	want := Request{Version: APIVersion, Wrap: kwp.RSAAES, KID: "https://v/keys/a", Nonce: "n"}
	at := azhttp.Time{At: time.Unix(1, 0), Source: "guest"}
	f.Fuzz(func(t *testing.T, text string) {
		// Without roots nothing is genuine.
		if r, err := Verify(text, want, x509.NewCertPool(), at); err == nil {
			t.Fatalf("Verify() = %+v", r)
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	f.Add("e30", "oct", "AQAB")
	f.Add("eyJjaXBoZXJ0ZXh0IjoiIiwiaGVhZGVyIjp7ImFsZyI6ImRpciIsImVuYyI6IkNLTV9SU0FfQUVTX0tFWV9XUkFQIn19", "RSA-HSM", "")
	f.Fuzz(func(t *testing.T, inner, kind, n string) {
		k := &Key{Kind: strings.TrimSuffix(kind, "-HSM"), Material: []byte(inner)}
		if err := k.check(JWK{KTY: kind, N: n, E: "AQAB"}); err == nil && k.Kind != "oct" {
			t.Fatalf("%q is a private key", inner)
		}
	})
}
