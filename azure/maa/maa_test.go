// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package maa

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/release"
)

func TestKeysOfTheIssuer(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	n := base64.RawURLEncoding.EncodeToString(k.N.Bytes())
	good := fmt.Sprintf(`{"kid":"a","kty":"RSA","n":%q,"e":"AQAB"}`, n)
	keys, err := ParseKeys([]byte(`{"keys":[` + good + `,{"kid":"b","kty":"EC"},{"kty":"RSA"}]}`))
	if err != nil || len(keys) != 1 || !keys["a"].Equal(&k.PublicKey) {
		t.Errorf("ParseKeys() = %v, %v", keys, err)
	}
	for name, text := range map[string]string{
		"no JSON":     "x",
		"twice":       `{"keys":[` + good + "," + good + `]}`,
		"nothing":     `{"keys":[{"kid":"a","kty":"RSA"}]}`,
		"small":       `{"keys":[{"kid":"a","kty":"RSA","n":"AQ","e":"AQAB"}]}`,
		"even":        fmt.Sprintf(`{"keys":[{"kid":"a","kty":"RSA","n":%q,"e":"AQAA"}]}`, n),
		"exponent 1":  fmt.Sprintf(`{"keys":[{"kid":"a","kty":"RSA","n":%q,"e":"AQ"}]}`, n),
		"x5c":         `{"keys":[{"kid":"a","kty":"RSA","x5c":["AA=="]}]}`,
		"x5c, no b64": `{"keys":[{"kid":"a","kty":"RSA","x5c":["?"]}]}`,
		"many":        `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`,
	} {
		if keys, err := ParseKeys([]byte(text)); err == nil {
			t.Errorf("%s: %v", name, keys)
		}
	}
}

// claims of a token of TDX, which no fake issues.
func tdxClaims(runtime []byte) map[string]any {
	return map[string]any{
		"iss": "https://maa", "iat": json.Number("1000"), "nbf": json.Number("1000"), "exp": json.Number("2000"),
		release.ClaimType: "tdxvm", release.ClaimTDXDebug: false, "tdx_report_data": fmt.Sprintf("%x", ReportData(runtime)),
		"x-ms-runtime": map[string]any{"keys": []any{}},
	}
}

func TestTokensOfTDX(t *testing.T) {
	runtime := []byte(`{"keys":[]}`)
	want := Expect{Kind: TdxVM, RuntimeData: runtime, At: azhttp.Time{At: time.Unix(1500, 0), Source: "guest"}}
	if err := judge(tdxClaims(runtime), "https://maa", want); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func(map[string]any){
		"debug":                   func(c map[string]any) { c[release.ClaimTDXDebug] = true },
		"no debug":                func(c map[string]any) { delete(c, release.ClaimTDXDebug) },
		"debug as text":           func(c map[string]any) { c[release.ClaimTDXDebug] = "false" },
		"type":                    func(c map[string]any) { c[release.ClaimType] = "sevsnpvm" },
		"no exp":                  func(c map[string]any) { delete(c, "exp") },
		"exp as text":             func(c map[string]any) { c["exp"] = "2000" },
		"no nbf":                  func(c map[string]any) { delete(c, "nbf") },
		"no iat":                  func(c map[string]any) { delete(c, "iat") },
		"issued in the future":    func(c map[string]any) { c["iat"] = json.Number("9000") },
		"a fraction":              func(c map[string]any) { c["exp"] = json.Number("2000.5") },
		"report data":             func(c map[string]any) { c["tdx_report_data"] = "00" },
		"another key":             func(c map[string]any) { c["x-ms-runtime"] = map[string]any{"keys": []any{1}} },
		"no runtime data":         func(c map[string]any) { delete(c, "x-ms-runtime") },
		"another issuer":          func(c map[string]any) { c["iss"] = "https://maa.example" },
		"no issuer":               func(c map[string]any) { delete(c, "iss") },
		"an issuer that is a map": func(c map[string]any) { c["iss"] = map[string]any{} },
	} {
		c := tdxClaims(runtime)
		edit(c)
		if err := judge(c, "https://maa", want); err == nil {
			t.Errorf("%s: the token holds", name)
		}
	}
	if err := judge(tdxClaims(runtime), "https://maa", Expect{At: want.At}); err == nil {
		t.Error("a token holds without an expected kind")
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kid":"a","kty":"RSA","n":"AQ","e":"AQAB","x5c":["AA=="]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := ParseKeys(b)
		for kid, k := range keys {
			if err != nil || kid == "" || k.N.BitLen() < 2048 {
				t.Fatalf("%q: %v %v", kid, k, err)
			}
		}
	})
}

func FuzzJudge(f *testing.F) {
	f.Add([]byte(`{"iss":"https://maa","exp":2000,"nbf":1,"iat":1,"x-ms-attestation-type":"sevsnpvm"}`))
	want := Expect{Kind: SevSnpVM, RuntimeData: []byte("{}"), At: azhttp.Time{At: time.Unix(1500, 0)}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c map[string]any
		if json.Unmarshal(b, &c) == nil && judge(c, "https://maa", want) == nil {
			t.Fatalf("%s holds without json.Number", b)
		}
	})
}
