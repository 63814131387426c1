// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var image = Image{"registry.example/team/app", "sha256:" + strings.Repeat("ab", 32)}

// signers are one key of each kind.
func signers(t testing.TB) map[string]Signer {
	t.Helper()
	out := map[string]Signer{}
	add := func(name string, k crypto.Signer, err error) {
		if err != nil {
			t.Fatal(err)
		}
		out[name] = Signer{k}
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	add("P-256", p256, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	add("P-384", p384, err)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	add("RSA", r, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	add("Ed25519", ed, err)
	return out
}

func keyOf(s Signer) Key { return Key{s.private.Public()} }

// forms are the ways in which an image is signed: make writes text and signature, check reads them.
var forms = map[string]struct {
	make  func(Signer, Image) (text, sig []byte, err error)
	check func(Key, []byte, []byte, Image) error
}{
	"payload": {
		func(s Signer, i Image) ([]byte, []byte, error) {
			text, err := Payload(i)
			if err != nil {
				return nil, nil, err
			}
			sig, err := s.Sign(text)
			return text, sig, err
		},
		CheckPayload,
	},
	"bundle": {
		func(s Signer, i Image) ([]byte, []byte, error) { b, err := SignatureBundle(s, i); return b, nil, err },
		func(k Key, b, _ []byte, i Image) error { return CheckBundle(k, b, i) },
	},
	"layers": {
		func(s Signer, i Image) ([]byte, []byte, error) {
			b, err := LayerBundle(s, i, []Layers{{"linux/amd64", i.Digest, nil}})
			return b, nil, err
		},
		func(k Key, b, _ []byte, i Image) error { _, err := CheckLayers(k, b, i, "linux/amd64"); return err },
	},
}

func TestEachKindOfKeySignsInEachForm(t *testing.T) {
	all := signers(t)
	other := signers(t)
	for form, f := range forms {
		for kind, s := range all {
			text, sig, err := f.make(s, image)
			if err != nil {
				t.Fatalf("%s, %s: %v", form, kind, err)
			}
			if err := f.check(keyOf(s), text, sig, image); err != nil {
				t.Errorf("%s, %s: %v", form, kind, err)
			}
			for wrong, k := range map[string]Key{"another": keyOf(other[kind]), "no": {}, "P-256": keyOf(other["P-256"])} {
				if err := f.check(k, text, sig, image); err == nil {
					t.Errorf("%s, %s: %s key verifies it", form, kind, wrong)
				}
			}
		}
	}
}

func TestAStatementHoldsForOneImage(t *testing.T) {
	s := signers(t)["P-256"]
	for form, f := range forms {
		text, sig, err := f.make(s, image)
		if err != nil {
			t.Fatal(err)
		}
		for name, i := range map[string]Image{
			"other digest":     {image.Repository, "sha256:" + strings.Repeat("cd", 32)},
			"other repository": {"registry.example/team/apple", image.Digest},
			"mirror":           {"mirror.example/team/app", image.Digest},
			"no digest":        {image.Repository, ""},
			"no repository":    {"", image.Digest},
		} {
			if err := f.check(keyOf(s), text, sig, i); err == nil {
				t.Errorf("%s: holds for %s", form, name)
			}
		}
		for i := range text {
			changed := append([]byte(nil), text...)
			changed[i] ^= 1
			if err := f.check(keyOf(s), changed, sig, image); err == nil {
				t.Fatalf("%s: byte %d may be changed: %s", form, i, changed)
			}
		}
	}
}

func TestDockersRegistryHasTwoNames(t *testing.T) {
	s := signers(t)["P-256"]
	b, err := SignatureBundle(s, Image{"index.docker.io/library/app", image.Digest})
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckBundle(keyOf(s), b, Image{"docker.io/library/app", image.Digest}); err != nil {
		t.Error(err)
	}
}

// signBundle signs a statement as it stands.
func signBundle(t *testing.T, s Signer, statement string) []byte {
	t.Helper()
	sig, err := s.Sign(pae(envelopeType, []byte(statement)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(bundle{MediaType: BundleType, Envelope: envelope{
		[]byte(statement), envelopeType, []signature{{Sig: sig}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStatementsThatAreRefusedThoughSigned(t *testing.T) {
	s := signers(t)["P-256"]
	hex := image.Digest[len("sha256:"):]
	good := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + hex +
		`"},"annotations":{"docker-reference":"registry.example/team/app"}}],` +
		`"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`
	if err := CheckBundle(keyOf(s), signBundle(t, s, good), image); err != nil {
		t.Fatalf("as cosign writes it with an annotation: %v", err)
	}
	for name, c := range map[string][2]string{
		"no repository":      {`,"annotations":{"docker-reference":"registry.example/team/app"}`, ``},
		"another repository": {`team/app`, `team/other`},
		"two subjects":       {`"subject":[`, `"subject":[{"digest":{"sha256":"` + hex + `"}},`},
		"no subject":         {`"subject":[{`, `"subject":[],"x":[{`},
		"another predicate":  {`sign/v1`, `sign/v2`},
		"a predicate":        {`"predicate":{}`, `"predicate":{"a":1}`},
		"another statement":  {`Statement/v1`, `Statement/v0.1`},
		"another hash":       {`"sha256"`, `"sha512"`},
		"digest twice":       {`"digest":`, `"digest":{"sha256":"` + strings.Repeat("0", 64) + `"},"digest":`},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		if text == good {
			t.Fatalf("%s: nothing is changed", name)
		}
		if err := CheckBundle(keyOf(s), signBundle(t, s, text), image); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBundlesThatAreRefused(t *testing.T) {
	s := signers(t)["P-256"]
	b, err := SignatureBundle(s, image)
	if err != nil {
		t.Fatal(err)
	}
	good := strings.Replace(string(b), `"publicKey":{}`, `"publicKey":{},"tlogEntries":[]`, 1)
	if err := CheckBundle(keyOf(s), []byte(good), image); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"certificate":     {`"publicKey":{}`, `"certificate":{"rawBytes":"AA=="}`},
		"key and chain":   {`"publicKey":{}`, `"publicKey":{},"x509CertificateChain":{}`},
		"no key":          {`"publicKey":{},`, ``},
		"older bundle":    {`v0.3+json`, `v0.2+json`},
		"two signatures":  {`"signatures":[`, `"signatures":[{"sig":"AAAA"},`},
		"blob's":          {`"dsseEnvelope"`, `"messageSignature":{},"dsseEnvelope"`},
		"other payload":   {`application/vnd.in-toto+json`, `application/json`},
		"text behind it":  {`}}`, `}}{}`},
		"member twice":    {`{"mediaType"`, `{"dsseEnvelope":{},"mediaType"`},
		"payload in URLs": {`"payload":"`, `"payload":"_`},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		if name == "text behind it" {
			text = good + "{}"
		}
		if err := CheckBundle(keyOf(s), []byte(text), image); err == nil || text == good {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := CheckLayers(keyOf(s), b, image, "linux/amd64"); err == nil {
		t.Error("a signature is taken for a layer statement")
	}
}

func TestPayloadsThatAreRefused(t *testing.T) {
	s := signers(t)["P-256"]
	b, err := Payload(image)
	if err != nil {
		t.Fatal(err)
	}
	check := func(text string) error {
		sig, err := s.Sign([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return CheckPayload(keyOf(s), []byte(text), sig, image)
	}
	if err := check(strings.Replace(string(b), `"optional":null`, `"optional":{"creator":"x"}`, 1)); err != nil {
		t.Error(err)
	}
	if err := check(strings.Replace(string(b), "team/app", "team/app:1", 1)); err != nil {
		t.Errorf("a reference with a tag: %v", err)
	}
	for name, c := range map[string][2]string{
		"no reference":    {`"docker-reference":"registry.example/team/app"`, ``},
		"empty reference": {`registry.example/team/app`, ``},
		"GPG's type":      {payloadKind, `atomic container signature`},
		"unknown member":  {`"type"`, `"x":1,"type"`},
		"digest twice":    {`"image":{`, `"image":{"docker-manifest-digest":"x",`},
		"critical twice":  {`{"critical"`, `{"critical":{},"critical"`},
	} {
		if err := check(strings.Replace(string(b), c[0], c[1], 1)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLayerStatements(t *testing.T) {
	s := signers(t)["P-256"]
	root := func(c string) string { return strings.Repeat(c, 64) }
	amd := Layers{"linux/amd64", "sha256:" + root("1"), []string{root("a"), root("b")}}
	arm := Layers{"linux/arm64", "sha256:" + root("2"), []string{root("c")}}
	b, err := LayerBundle(s, image, []Layers{amd, arm})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Layers{amd, arm} {
		got, err := CheckLayers(keyOf(s), b, image, want.Platform)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	}
	if _, err := CheckLayers(keyOf(s), b, image, "linux/s390x"); err == nil {
		t.Error("there are layers for s390x")
	}
	for name, bad := range map[string][]Layers{
		"none": nil, "twice": {amd, amd}, "no platform": {{"", amd.Manifest, nil}}, "no digest": {{"linux/amd64", "x", nil}},
		"no hash": {{"linux/amd64", amd.Manifest, []string{root("A")}}},
		"many":    {{"linux/amd64", amd.Manifest, make([]string, maxLayers+1)}},
	} {
		if _, err := LayerBundle(s, image, bad); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestKeysAreFiles(t *testing.T) {
	for kind, s := range signers(t) {
		private, public, err := s.PEM()
		if err != nil {
			t.Fatal(err)
		}
		read, errS := ParseSigner(private)
		key, errK := ParseKey(public)
		if errS != nil || errK != nil {
			t.Fatalf("%s: %v, %v", kind, errS, errK)
		}
		sig, err := read.Sign([]byte("x"))
		if err != nil || key.verify([]byte("x"), sig) != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := ParseKey(private); err == nil {
			t.Errorf("%s: a private key is taken for a public one", kind)
		}
		if _, err := ParseKey(append(public, public...)); err == nil {
			t.Errorf("%s: of two keys one is taken", kind)
		}
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []crypto.Signer{small, p521} {
		private, public, err := Signer{k}.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseSigner(private); err == nil {
			t.Errorf("%T is accepted", k)
		}
		if _, err := ParseKey(public); err == nil {
			t.Errorf("%T is accepted", k)
		}
	}
}

// cosign hashes with SHA-256 for all curves, newer libraries of sigstore with SHA-384 for P-384.
func TestP384WithItsOwnHash(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384([]byte("x"))
	sig, err := ecdsa.SignASN1(rand.Reader, k, digest[:])
	if err != nil || (Key{&k.PublicKey}).verify([]byte("x"), sig) != nil {
		t.Errorf("not verified: %v", err)
	}
}

func FuzzPayload(f *testing.F) {
	b, err := Payload(image)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, text []byte) {
		repository, digest, err := parsePayload(text)
		if err == nil && image.same(repository, digest) == nil && !bytes.Contains(text, []byte(image.Digest[7:])) {
			t.Errorf("a payload about something else holds: %s", text)
		}
		if CheckPayload(Key{}, text, nil, image) == nil {
			t.Error("verified by no key")
		}
	})
}

func FuzzBundle(f *testing.F) {
	_, private, err := ed25519.GenerateKey(strings.NewReader(strings.Repeat("k", 64)))
	if err != nil {
		f.Fatal(err)
	}
	s := Signer{private}
	for _, form := range []string{"bundle", "layers"} {
		b, _, err := forms[form].make(s, image)
		if err != nil {
			f.Fatal(err)
		}
		var v bundle
		if err := json.Unmarshal(b, &v); err != nil {
			f.Fatal(err)
		}
		f.Add(b, v.Envelope.Payload)
	}
	f.Fuzz(func(t *testing.T, text, statement []byte) {
		if CheckBundle(Key{}, text, image) == nil {
			t.Error("verified by no key")
		}
		// A statement of the fuzzer's, signed: it reaches what lies behind the signature.
		sig, err := s.Sign(pae(envelopeType, statement))
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(bundle{MediaType: BundleType, Envelope: envelope{
			statement, envelopeType, []signature{{Sig: sig}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if CheckBundle(keyOf(s), b, image) == nil && !strings.Contains(string(statement), image.Digest[7:]) {
			t.Errorf("a statement about something else holds: %s", statement)
		}
		if l, err := CheckLayers(keyOf(s), b, image, "linux/amd64"); err == nil && l.Platform != "linux/amd64" {
			t.Errorf("%+v", l)
		}
	})
}
