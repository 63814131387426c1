// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
)

const signerKid = "kbs:///default/sealed/signer"

// world is a signer, a broker with resources, and a guest's opener.
type world struct {
	Signer
	Opener
	broker  map[string][]byte
	fetched []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	key, public := newKey(t)
	w := &world{
		Signer: Signer{Key: key, Kid: signerKid},
		broker: map[string][]byte{
			"default/sealed/signer": public, "default/db/password": []byte("hunter2"), "default/db/root": []byte("toor"),
			"default/kek/one": bytes.Repeat([]byte{7}, keySize),
		},
	}
	w.Opener = Opener{Signers: []string{signerKid}, Fetch: func(_ context.Context, path string) ([]byte, error) {
		w.fetched = append(w.fetched, path)
		b, ok := w.broker[path]
		if !ok {
			return nil, errors.New("there is no such resource")
		}
		return b, nil
	}}
	return w
}

func newKey(t *testing.T) (key *ecdsa.PrivateKey, public []byte) {
	t.Helper()
	private, public, err := NewKey("")
	if err != nil {
		t.Fatal(err)
	}
	if key, _, err = ParsePrivateKey(private); err != nil {
		t.Fatal(err)
	}
	return key, public
}

func (w *world) vault(t *testing.T, path string) string {
	t.Helper()
	text, err := w.SealVault(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (w *world) envelope(t *testing.T) string {
	t.Helper()
	text, err := w.SealEnvelope("default/kek/one", w.broker["default/kek/one"], []byte("in an envelope"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// refuse opens a text, and wants an error with this code.
func (w *world) refuse(t *testing.T, name, text, allowed string, want Code) {
	t.Helper()
	got, err := w.Open(t.Context(), text, allowed)
	var e *Error
	if !errors.As(err, &e) || e.Code != want || got != nil {
		t.Errorf("%s: Open() = %q, %v, want code %s", name, got, err, want)
	}
}

func TestSealAndOpen(t *testing.T) {
	w := newWorld(t)
	const path = "default/db/password"
	if got, err := w.Open(t.Context(), w.vault(t, path), path); string(got) != "hunter2" {
		t.Errorf("vault: %q, %v", got, err)
	}
	if got, err := w.Open(t.Context(), w.envelope(t), "kbs:///default/kek/one"); string(got) != "in an envelope" {
		t.Errorf("envelope: %q, %v", got, err)
	}
}

// A changed character of any part changes what is signed, the signature, or the form.
func TestEveryChangedCharacterIsRefused(t *testing.T) {
	w := newWorld(t)
	for allowed, text := range map[string]string{
		"default/db/password": w.vault(t, "default/db/password"), "default/kek/one": w.envelope(t),
	} {
		for i := range len(text) {
			for _, c := range []byte{'A', 'z', '.', text[i] ^ 1} {
				changed := text[:i] + string(rune(c)) + text[i+1:]
				if got, err := w.Open(t.Context(), changed, allowed); changed != text && err == nil {
					t.Fatalf("byte %d of %s changed: opened %q", i, text, got)
				}
			}
		}
	}
}

// Attacks of a host with sealed texts that it has, and with its own.
func TestTheHostIsRefused(t *testing.T) {
	w := newWorld(t)
	const allowed = "default/db/password"
	text := w.vault(t, allowed)
	other := newWorld(t)
	_, private := newKey(t)
	w.refuse(t, "signed by another key of the same kid", other.vault(t, allowed), allowed, Signature)
	other.Kid = "kbs:///default/db/root"
	w.refuse(t, "signed by a kid that is not accepted", other.vault(t, allowed), allowed, NoSigner)
	w.refuse(t, "moved to a place of another resource", text, "default/db/root", Moved)
	w.refuse(t, "at a place that allows nothing", text, "", Moved)
	w.refuse(t, "at a place that allows what is no resource", text, "a/b", Moved)
	unsigned, err := Signer{InsecureUnsigned: true}.SealVault(allowed)
	if err != nil {
		t.Fatal(err)
	}
	w.refuse(t, "unsigned", unsigned, allowed, NoSigner)
	parts := strings.Split(text, ".")
	w.refuse(t, "unsigned header with a signature",
		strings.Join([]string{"sealed", noHeader, parts[2], parts[3]}, "."), allowed, Malformed)
	w.refuse(t, "header without a signature",
		strings.Join([]string{"sealed", parts[1], parts[2], noSignature}, "."), allowed, Malformed)
	w.refuse(t, "payload of another text", strings.Join([]string{
		"sealed", parts[1], strings.Split(w.vault(t, "default/db/root"), ".")[2], parts[3],
	}, "."), "default/db/root", Signature)
	if slices.Contains(w.fetched, "default/db/root") || slices.Contains(w.fetched, allowed) {
		t.Errorf("the broker was asked for %q although nothing was allowed", w.fetched)
	}
	w.broker["default/sealed/signer"] = private[:len(private)-1]
	w.refuse(t, "signer's key that is no key", text, allowed, NoKey)
}

func TestTheBrokerFails(t *testing.T) {
	w := newWorld(t)
	text := w.vault(t, "default/db/password")
	w.broker["default/db/password"] = nil
	w.refuse(t, "empty resource", text, "default/db/password", Fetch)
	delete(w.broker, "default/db/password")
	w.refuse(t, "no resource", text, "default/db/password", Fetch)
	for name, kek := range map[string][]byte{"short": {1, 2, 3}, "other": bytes.Repeat([]byte{8}, keySize)} {
		sealed := w.envelope(t)
		saved := w.broker["default/kek/one"]
		w.broker["default/kek/one"] = kek
		w.refuse(t, name+" key of envelopes", sealed, "default/kek/one", Decrypt)
		w.broker["default/kek/one"] = saved
	}
	delete(w.broker, "default/sealed/signer")
	_, err := w.Open(t.Context(), text, "default/db/password")
	var e *Error
	if !errors.As(err, &e) || e.Code != Fetch || e.Resource != "default/sealed/signer" {
		t.Errorf("no key of the signer: %v", err)
	}
	w.Opener.Fetch = nil
	w.refuse(t, "no broker", text, "default/db/password", Fetch)
}

func TestUnsignedTextsNeedTheSwitch(t *testing.T) {
	w := newWorld(t)
	w.Opener.InsecureUnsigned = true
	text, err := Signer{InsecureUnsigned: true}.SealVault("default/db/password")
	if err != nil || !strings.HasPrefix(text, "sealed.fakejwsheader.") || !strings.HasSuffix(text, ".fakesignature") {
		t.Fatalf("%q, %v", text, err)
	}
	if got, err := w.Open(t.Context(), text, "default/db/password"); string(got) != "hunter2" {
		t.Errorf("Open() = %q, %v", got, err)
	}
	// The switch is for texts without a signature. A wrong signature stays wrong.
	w.refuse(t, "signed by another key", newWorld(t).vault(t, "default/db/password"), "default/db/password", Signature)
}

// The key may be the guest's own, by a name that is no URI. A URI is not looked up among them.
func TestKeysOfTheGuest(t *testing.T) {
	w := newWorld(t)
	w.Kid = "release"
	w.Opener.Signers = []string{"release", signerKid}
	text := w.vault(t, "default/db/password")
	w.refuse(t, "unknown name", text, "default/db/password", NoKey)
	w.Opener.Keys = map[string][]byte{"release": w.broker["default/sealed/signer"]}
	if got, err := w.Open(t.Context(), text, "default/db/password"); string(got) != "hunter2" {
		t.Errorf("Open() = %q, %v", got, err)
	}
	other, public := newKey(t)
	w.Signer = Signer{Key: other, Kid: signerKid}
	w.Opener.Keys[signerKid] = public
	w.refuse(t, "the guest's key for a URI", w.vault(t, "default/db/password"), "default/db/password", Signature)
}

// With a key of its own the opener looks up none, and takes no other.
func TestTheOneKey(t *testing.T) {
	w := newWorld(t)
	w.Opener.Signers = nil
	w.Opener.Key = &w.Signer.Key.PublicKey
	text := w.vault(t, "default/db/password")
	got, err := w.Open(t.Context(), text, "default/db/password")
	if string(got) != "hunter2" || len(w.fetched) != 1 {
		t.Errorf("Open() = %q, %v after fetching %q", got, err, w.fetched)
	}
	w.refuse(t, "signed by another key", newWorld(t).vault(t, "default/db/password"), "default/db/password", Signature)
}

func TestPayloadsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	const good = `{"version":"0.1.0","type":"vault","name":"kbs:///a/b/c","provider":"kbs","provider_settings":{},"annotations":{}}`
	seal := func(payload string) string {
		return Prefix + noHeader + "." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + noSignature
	}
	if s, err := Parse(seal(good)); err != nil || s.Resource != "a/b/c" || s.Kind != Vault {
		t.Fatalf("Parse() = %+v, %v", s, err)
	}
	w.Opener.InsecureUnsigned = true
	for name, tc := range map[string]struct {
		old, new string
		want     Code
	}{
		"member twice":        {`"type"`, `"name":"kbs:///d/e/f","type"`, Malformed},
		"other member":        {`"type"`, `"typo":1,"type"`, Malformed},
		"member of envelopes": {`"type"`, `"iv":"","type"`, Malformed},
		"no annotations":      {`,"annotations":{}`, ``, Malformed},
		"annotations":         {`"annotations":{}`, `"annotations":{"version":"2"}`, Malformed},
		"type of another":     {`vault`, `Vault`, Malformed},
		"provider":            {`"kbs"`, `"aliyun"`, Provider},
		"number for a name":   {`"kbs:///a/b/c"`, `7`, Malformed},
		"plugin":              {`kbs:///`, `kbs+pkcs11:///`, Malformed},
		"file":                {`kbs:///a/b/c`, `file:///a/b/c`, Malformed},
		"path upwards":        {`a/b/c`, `a/../c`, Malformed},
		"text after it":       {`{}}`, `{}} `, ""},
		"object after it":     {`{}}`, `{}}{}`, Malformed},
	} {
		text := seal(strings.Replace(good, tc.old, tc.new, 1))
		if tc.want == "" {
			if _, err := Parse(text); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		w.refuse(t, name, text, "a/b/c", tc.want)
	}
	w.refuse(t, "a vault's members", seal(strings.Replace(good, "vault", "envelope", 1)), "a/b/c", Malformed)
	w.refuse(t, "long", Prefix+strings.Repeat("a", MaxText), "a/b/c", Malformed)
	w.refuse(t, "not sealed", "hunter2", "a/b/c", Malformed)
	w.refuse(t, "twice the prefix", Prefix+seal(good), "a/b/c", Malformed)
}

func TestEnvelopesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	s, err := Parse(w.envelope(t))
	if err != nil {
		t.Fatal(err)
	}
	p := func() envelopePayload {
		return envelopePayload{
			Version: version, Type: Envelope, KeyID: "kbs:///default/kek/one", Provider: provider, WrapType: wrapGCM,
			Key: s.key, Data: s.data, IV: s.iv,
		}
	}
	for name, change := range map[string]func(*envelopePayload){
		"CTR":            func(p *envelopePayload) { p.WrapType = "A256CTR" },
		"short IV":       func(p *envelopePayload) { p.IV = p.IV[:11] },
		"short key":      func(p *envelopePayload) { p.Key = p.Key[:59] },
		"no data":        func(p *envelopePayload) { p.Data = nil },
		"key of another": func(p *envelopePayload) { p.KeyID = "aws:///default/kek/one" },
	} {
		bad := p()
		change(&bad)
		if text, err := w.sign(bad); err == nil {
			t.Errorf("%s: sealed as %s", name, text)
		}
	}
	if _, err := w.sign(p()); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	private, public, err := NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParsePublicKey(private); err == nil || !strings.Contains(err.Error(), "private") {
		t.Errorf("a private key for a public one: %v", err)
	}
	if _, _, err := ParsePrivateKey(public); err == nil {
		t.Error("a public key for a private one is accepted")
	}
	_, other, err := NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string][2]string{
		"other curve":      {`P-256`, `P-384`},
		"other algorithm":  {`ES256`, `HS256`},
		"other kind":       {`"EC"`, `"RSA"`},
		"unknown member":   {`"kty"`, `"k":"x","kty"`},
		"for encryption":   {`"kty"`, `"use":"enc","kty"`},
		"no x":             {`"x":`, `"kid2":`},
		"not on the curve": {`"y":"`, `"y":"AAAA`},
	} {
		if _, err := ParsePublicKey([]byte(strings.Replace(string(public), tc[0], tc[1], 1))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	x := func(b []byte) string { _, rest, _ := strings.Cut(string(b), `"x":`); return rest[:90] }
	if _, _, err := ParsePrivateKey([]byte(strings.Replace(string(private), x(private), x(other), 1))); err == nil {
		t.Error("the public half of another key is accepted")
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	w := newWorld(t)
	text := w.envelope(t)
	w.broker["default/kek/one"] = []byte("canary-kek")
	_, err := w.Open(t.Context(), text, "default/kek/one")
	if err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "kbs:///default/kek/one") {
		t.Errorf("%v", err)
	}
}

func FuzzSealed(f *testing.F) {
	s := Signer{InsecureUnsigned: true}
	vault, errV := s.SealVault("a/b/c")
	envelope, errE := s.SealEnvelope("a/b/c", make([]byte, keySize), []byte("x"))
	if err := errors.Join(errV, errE); err != nil {
		f.Fatal(err)
	}
	f.Add(vault)
	f.Add(envelope)
	f.Add("sealed.eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ." + strings.Split(vault, ".")[2] + "." + strings.Repeat("A", 86))
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		var e *Error
		if err != nil && (!errors.As(err, &e) || s != nil) {
			t.Fatalf("Parse() = %v, %v", s, err)
		}
		if err != nil {
			return
		}
		if _, err := resourcePath(uriOf(s.Resource)); err != nil || s.Unsigned() != (s.Kid == "") {
			t.Errorf("resource %q, kid %q: %v", s.Resource, s.Kid, err)
		}
		// Nobody has signed it.
		if got, err := (&Opener{}).Open(t.Context(), text, s.Resource); err == nil {
			t.Errorf("opened %q", got)
		}
	})
}
