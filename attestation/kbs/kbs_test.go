// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

var kinds = []Kind{P256, P521, RSA}

// nonce is one of 32 bytes.
var nonce = base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, NonceSize))

func key(t testing.TB, k Kind) *Key {
	t.Helper()
	out, err := NewKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The digest is that of Trustee's documentation: shared/reference/coco.md, section 2.2.
func TestCanonicalFormHasTheKnownDigest(t *testing.T) {
	var v any
	if err := json.Unmarshal([]byte(`{"b":1,"a":"test","c":{"d":"e"}}`), &v); err != nil {
		t.Fatal(err)
	}
	text, err := canonical(v)
	if err != nil {
		t.Fatal(err)
	}
	const want = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
	if sum := sha512.Sum384(text); hex.EncodeToString(sum[:]) != want {
		t.Errorf("digest of %s is %x", text, sum)
	}
}

// The cases are those of RFC 8785, sections 3.2.2.2 and 3.2.3, and of package rfc8785 for Python.
func TestCanonicalForm(t *testing.T) {
	for in, want := range map[string]string{
		`{"\ufb33":1,"\ud83d\ude00":2,"\u20ac":3,"\r":4,"1":5,"\u0080":6,"\u00f6":7}`: "{\"\\r\":4,\"1\":5,\"\u0080\":6,\"ö\":7,\"€\":3,\"😀\":2,\"\ufb33\":1}",
		`["\u20ac$\u000F\u000aA'B\u0022\\\"\/",true,null,-3]`:                         "[\"€$\\u000f\\nA'B\\\"\\\\\\\"/\",true,null,-3]",

		`"\u007f\u2028<&>\b\t\f"`: "\"\u007f\u2028<&>\\b\\t\\f\"",
		`1e3`:                     `1000`,
	} {
		var v any
		if err := json.Unmarshal([]byte(in), &v); err != nil {
			t.Fatal(err)
		}
		if got, err := canonical(v); err != nil || string(got) != want {
			t.Errorf("canonical(%s) = %s, %v, want %s", in, got, err, want)
		}
	}
	for _, v := range []any{0.5, 1e300, "\xff", map[string]any{"\xff": 1.0}, struct{}{}} {
		if got, err := canonical(v); err == nil {
			t.Errorf("canonical(%v) = %s", v, got)
		}
	}
}

func TestMessagesSurviveTheWire(t *testing.T) {
	for _, k := range kinds {
		for _, a := range []Attestation{
			{Nonce: nonce, Primary: json.RawMessage(`{"quote":"x"}`)},
			{Nonce: nonce, Primary: json.RawMessage(`{}`), InitData: "version = \"0.1.0\"\n<&>", Additional: `{"nvidia":{}}`},
		} {
			a.Key = key(t, k).Public()
			text, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseAttestation(text)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			want, err := a.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if d, err := got.Digest(); err != nil || d != want || got.InitData != a.InitData {
				t.Errorf("%s: digest %x, %v, want %x", text, d, err, want)
			}
		}
	}
}

// Each of these differs from a good message in one place.
func TestAttestationsThatAreRefused(t *testing.T) {
	text, err := json.Marshal(Attestation{Nonce: nonce, Key: key(t, P256).Public(), Primary: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	good := string(text)
	for _, tc := range []struct{ from, to, want string }{
		{`"kty":"EC"`, `"kty":"EC","kid":"1"`, `unknown member "kid"`},
		{`"kty":"EC"`, `"kty":"EC","kty":"EC"`, "stands twice"},
		{`"kty":"EC"`, `"Kty":"EC"`, "no kty"},
		{`"kty":"EC"`, `"kty":"AKP"`, "known are EC and RSA"},
		{`"crv":"P-256"`, `"crv":"P-384"`, "known are P-256 and P-521"},
		{`"crv":"P-256"`, `"crv":"P-521"`, "66 bytes each"},
		{`"alg":"ECDH-ES+A256KW"`, `"alg":"ECDH-ES"`, "takes ECDH-ES+A256KW"},
		{`"alg":"ECDH-ES+A256KW"`, `"alg":1`, "alg is no string"},
		{`"x":"`, `"x":"AAAA`, "32 bytes each"},
		{`"x":"`, `"x":"_`, "32 bytes each"},
		{nonce, nonce[:40], "32 bytes in base64"},
		{nonce, strings.Replace(nonce, "=", "", 1), "32 bytes in base64"},
		{nonce, nonce[:42] + "d=", "32 bytes in base64"}, // the same bytes, with bits set that no one reads
		{`"nonce"`, `"nonce":"","nonce"`, "stands twice"},
		{`"tee-evidence"`, `"tee-evidence":{},"tee-evidence"`, "stands twice"},
		{`"tee-evidence"`, `"other":1,"tee-evidence"`, `unknown member "other"`},
		{`"primary_evidence":{}`, `"primary_evidence":null`, "no primary_evidence"},
		{`"primary_evidence":{}`, `"primary_evidence":{`, "not JSON"},
		{`"additional_evidence":""`, `"additional_evidence":{}`, "is no string"},
		{`{"runtime-data"`, `{"init-data":{"format":"json","body":"x"},"runtime-data"`, "known is toml"},
		{`{"runtime-data"`, `{"init-data":{"format":"toml","body":""},"runtime-data"`, "empty"},
		{`{"runtime-data"`, `[]{"runtime-data"`, "not a JSON object"},
	} {
		bad := strings.Replace(good, tc.from, tc.to, 1)
		if bad == good {
			t.Fatalf("%s is not in %s", tc.from, good)
		}
		if _, err := ParseAttestation([]byte(bad)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s for %s: %v, want %q", tc.to, tc.from, err, tc.want)
		}
	}
	long := strings.Repeat(" ", MaxBody+1)
	for _, bad := range []string{good + "x", good[:len(good)-1], "", "null", "{}", "\xff", long} {
		if _, err := ParseAttestation([]byte(bad)); err == nil {
			t.Errorf("%.60q is accepted", bad)
		}
	}
}

func TestVersionsOfTheProtocol(t *testing.T) {
	for version, ok := range map[string]bool{
		"0.4.0": true, "0.4.7": true, "0.4": false, "0.1.1": false, "0.40.0": false, "0.4.x": false,
		"": false, "0.4.0-a": false,
	} {
		r, err := ParseRequest(fmt.Appendf(nil, `{"version":%q,"tee":"snp","extra-params":"","devices":[]}`, version))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.CheckVersion(); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}

// go-jose decrypts what Seal has encrypted, and the header is what Trustee's clients expect.
func TestJWEForOthers(t *testing.T) {
	for _, k := range kinds {
		key := key(t, k)
		text, err := key.Public().Seal([]byte("a secret"))
		if err != nil {
			t.Fatal(err)
		}
		o, err := jose.ParseEncryptedJSON(string(text),
			[]jose.KeyAlgorithm{jose.ECDH_ES_A256KW, jose.RSA_OAEP_256}, []jose.ContentEncryption{jose.A256GCM})
		if err != nil {
			t.Fatal(err)
		}
		var private any = key.ec
		if key.rsa != nil {
			private = key.rsa
		}
		if plain, err := o.Decrypt(private); err != nil || string(plain) != "a secret" {
			t.Errorf("%s: go-jose decrypts %q, %v", k, plain, err)
		}
		var m jwe
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		header, err := b64.DecodeString(m.Protected)
		want := `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-`
		if k == RSA {
			want = `{"alg":"RSA-OAEP-256","enc":"A256GCM"}`
		}
		if err != nil || !strings.HasPrefix(string(header), want) {
			t.Errorf("%s: header %s, %v", k, header, err)
		}
	}
}

// go-jose writes the header in another order; the check takes it as it is.
func TestJWEOfOthers(t *testing.T) {
	for _, k := range kinds {
		key := key(t, k)
		to := jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: key.Public().ec}
		if k == RSA {
			to = jose.Recipient{Algorithm: jose.RSA_OAEP_256, Key: key.Public().rsa}
		}
		e, err := jose.NewEncrypter(jose.A256GCM, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		o, err := e.Encrypt([]byte("a secret"))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := key.Open([]byte(o.FullSerialize())); err != nil || string(plain) != "a secret" {
			t.Errorf("%s: Open = %q, %v", k, plain, err)
		}
	}
}

// No character of a JWE can be changed without a refusal.
func TestChangedJWEIsRefused(t *testing.T) {
	for _, k := range kinds {
		key, twin := key(t, k), key(t, k)
		text, err := key.Public().Seal([]byte("a secret"))
		if err != nil {
			t.Fatal(err)
		}
		step := 1
		if k == RSA {
			step = 17
		}
		for i := 0; i < len(text); i += step {
			bad := bytes.Clone(text)
			bad[i] ^= 1
			if plain, err := key.Open(bad); err == nil {
				t.Errorf("%s: character %d (%q): %q", k, i, text[i], plain)
			}
		}
		if _, err := twin.Open(text); err == nil {
			t.Errorf("%s: another key opens it", k)
		}
	}
}

// The vector is that of RFC 3394, section 4.6.
func TestKeyWrap(t *testing.T) {
	kek, _ := hex.DecodeString("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
	key, _ := hex.DecodeString("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
	const want = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
	wrapped, err := keyWrap(kek, key)
	if err != nil || hex.EncodeToString(wrapped) != want {
		t.Fatalf("keyWrap = %x, %v", wrapped, err)
	}
	if got, err := keyUnwrap(kek, wrapped); err != nil || !bytes.Equal(got, key) {
		t.Errorf("keyUnwrap = %x, %v", got, err)
	}
}

func TestPrivateKeysAreNotPrinted(t *testing.T) {
	for _, k := range kinds {
		key := key(t, k)
		for _, text := range []string{fmt.Sprint(key), fmt.Sprintf("%v %+v %#v %s", key, key, key, key)} {
			if strings.ReplaceAll(text, "[redacted]", "") != strings.Repeat(" ", strings.Count(text, " ")) {
				t.Errorf("printed: %s", text)
			}
		}
	}
}

func TestErrorsAreToldByType(t *testing.T) {
	text, err := json.Marshal(&Error{Type: PolicyDeny, Detail: "Access denied by policy"})
	if err != nil {
		t.Fatal(err)
	}
	if e := ParseError(401, text); e.Type != PolicyDeny || e.Detail != "Access denied by policy" || e.Status != 401 {
		t.Errorf("ParseError(%s) = %v", text, e)
	}
	for _, body := range []string{"", "<html>", `{"type":"x"}`, `{"type":"https://evil.example/PolicyDeny","detail":""}`} {
		if e := ParseError(403, []byte(body)); e.Type != "" {
			t.Errorf("ParseError(%s) = %v", body, e)
		}
	}
}

func TestPaths(t *testing.T) {
	for in, want := range map[string]string{
		"a/b/c": "a/b/c", "/a/b/c": "a/b/c", "kbs:///a/b/c": "a/b/c", "kbs://host:1/a/b/c.d": "a/b/c.d", "-/_/0": "-/_/0",
		"a/b": "", "a/b/c/d": "", "a/../c": "", "a/b/.c": "", "a//c": "", "kbs://a": "", "a/b/c?x": "", "a/b/ä": "", "": "",
		"a/b/" + strings.Repeat("c", maxPath): "",
	} {
		if got, err := ParsePath(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ParsePath(%.80q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func FuzzAttestation(f *testing.F) {
	text, err := json.Marshal(Attestation{Nonce: nonce, Key: key(f, P256).Public(), Primary: json.RawMessage(`{}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseRequest(b)
		_, _ = ParseChallenge(b)
		_, _ = ParseToken(b)
		_ = ParseError(401, b)
		a, err := ParseAttestation(b)
		if err != nil {
			return
		}
		want, err := a.Digest()
		if err != nil {
			t.Fatalf("no digest of what was read: %v", err)
		}
		again, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		twin, err := ParseAttestation(again)
		if err != nil {
			t.Fatalf("%s is read, and not what was written of it: %v", b, err)
		}
		if got, err := twin.Digest(); err != nil || got != want {
			t.Errorf("%s: the digest changes on the wire", b)
		}
	})
}

func FuzzJWE(f *testing.F) {
	keys := []*Key{key(f, P256), key(f, P521)}
	for _, k := range keys {
		text, err := k.Public().Seal([]byte("a secret"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, k := range keys {
			if plain, err := k.Open(b); err == nil && string(plain) != "a secret" {
				t.Errorf("a forged JWE opens: %q", plain)
			}
		}
	})
}
