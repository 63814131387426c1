// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/initdata"
)

func root(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestHowRegistriesAreReached(t *testing.T) {
	text := fmt.Sprintf(`[image]
extra_root_certificates = ["""
%s""", """
%s%s"""]
authenticated_registry_credentials_uri = "kbs:///default/credential/test"
[image.image_pull_proxy]
https_proxy = "http://proxy.example:3128"
no_proxy = "near.example, .inner.example"
`, root(t), root(t), root(t))
	got, err := ParseImages(map[string]string{initdata.FileCDH: text})
	if err != nil || len(got.Roots) != 3 || got.Login != "default/credential/test" {
		t.Fatalf("ParseImages() = %+v, %v", got, err)
	}
	for host, proxied := range map[string]bool{
		"far.example": true, "near.example": false, "a.near.example": false, "NEAR.example": false, "a.inner.example": false,
		"notnear.example": true,
	} {
		p, err := got.ProxyFor(&url.URL{Scheme: "https", Host: host + ":5000"})
		if err != nil || (p != nil) != proxied || proxied && p.Host != "proxy.example:3128" {
			t.Errorf("ProxyFor(%s) = %v, %v", host, p, err)
		}
	}
	if got, err := ParseImages(nil); err != nil || len(got.Roots) > 0 || got.Login != "" || got.Proxy != nil {
		t.Errorf("ParseImages() of nothing = %+v, %v", got, err)
	}
	// A pod with this section and no broker has none.
	if _, err := Parse(map[string]string{initdata.FileCDH: text}); err == nil ||
		!strings.Contains(err.Error(), "names no key broker") {
		t.Errorf("Parse() = %v", err)
	}
}

func TestImageSectionsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`extra_root_certificates = ["x"]`:               "extra_root_certificates[0]: has no certificate in PEM",
		`authenticated_registry_credentials_uri = "x"`:  "authenticated_registry_credentials_uri",
		`image_security_policy_uri = "kbs:///a/b/c"`:    "does not know image.image_security_policy_uri",
		`image_pull_proxy = {https_proxy = "proxy:1"}`:  "image_pull_proxy.https_proxy",
		`image_pull_proxy = {http_proxy = "http://x"}`:  "does not know image.image_pull_proxy.http_proxy",
		`max_concurrent_layer_downloads_per_image = 3 `: "does not know",
	} {
		got, err := ParseImages(map[string]string{initdata.FileCDH: "[image]\n" + text + "\n"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: ParseImages() = %+v, %v, want %q", text, got, err, want)
		}
	}
}
