// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cose

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/veraison/go-cose"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/cose/cosetest"
)

func expect(v cosetest.Vendor, least uint64) Expectations {
	return Expectations{Issuer: v.DID, Feed: cosetest.Feed, MinSVN: &least}
}

func TestEndorsementsAreVerified(t *testing.T) {
	for _, alg := range []cose.Algorithm{cose.AlgorithmPS384, cose.AlgorithmES384} {
		v := cosetest.Make(t, func(s *cosetest.Spec) { s.Alg = alg })
		for _, svn := range []string{`"101"`, "101"} {
			e, err := Verify(v.Sign(t, cosetest.Body(svn), nil), expect(v, 101))
			if err != nil {
				t.Fatal(err)
			}
			if e.SVN != 101 || e.Launches[0].Digest != cosetest.Digest || !e.Signed.Equal(cosetest.Signed) ||
				len(e.Checks) != 5 {
				t.Errorf("%s: %+v", alg, e)
			}
		}
		// Without a signing time the youngest certificate's begin counts.
		b := v.Sign(t, cosetest.Body("101"), func(h cose.ProtectedHeader) { delete(h, headerTime) })
		if e, err := Verify(b, expect(v, 0)); err != nil || !e.Signed.Equal(cosetest.Signed.AddDate(0, -2, 0)) {
			t.Errorf("%s without signing time: %+v, %v", alg, e, err)
		}
	}
}

func TestEachWrongEndorsementHasItsCode(t *testing.T) {
	good := cosetest.Make(t, nil)
	other := cosetest.Make(t, nil)
	wrongSubject := cosetest.Make(t, func(s *cosetest.Spec) { s.Subject = "Another" })
	wrongUsage := cosetest.Make(t, func(s *cosetest.Spec) { s.Usage = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311} })
	old := cosetest.Make(t, func(s *cosetest.Spec) { s.Until = cosetest.Signed.AddDate(0, -1, 0) })
	late := cosetest.Make(t, func(s *cosetest.Spec) { s.From = cosetest.Signed.AddDate(0, 1, 0) })
	set := func(k, v any) func(cose.ProtectedHeader) { return func(h cose.ProtectedHeader) { h[k] = v } }
	chained := func(certs ...any) func(cose.ProtectedHeader) { return set(cose.HeaderLabelX5Chain, certs) }
	drop := func(k any) func(cose.ProtectedHeader) { return func(h cose.ProtectedHeader) { delete(h, k) } }
	of := func(v cosetest.Vendor) func(*Expectations) { return func(e *Expectations) { e.Issuer = v.DID } }
	body := cosetest.Body("101")
	const chainCode, bad, misused = attestation.CodeChain, attestation.CodeMalformed, attestation.CodeExpectation
	for _, tc := range []struct {
		name    string
		by      cosetest.Vendor
		payload string
		edit    func(cose.ProtectedHeader)
		want    func(*Expectations)
		code    attestation.Code
	}{
		{"another issuer", other, body, nil, nil, attestation.CodeEndorsementIssuer},
		{"another's chain in our name", other, body, set(headerIssuer, good.DID), nil, chainCode},
		{"our chain, another's key", other, body, func(h cose.ProtectedHeader) {
			h[headerIssuer], h[cose.HeaderLabelX5Chain] = good.DID, good.Chain
		}, nil, attestation.CodeSignature},
		{"another feed", good, body, set(headerFeed, "ConfidentialKata-UVM"), nil, attestation.CodeEndorsementFeed},
		{"svn 100", good, cosetest.Body("100"), nil, nil, attestation.CodeEndorsementSVN},
		{"svn 99 is not above 101 as text", good, cosetest.Body(`"99"`), nil, nil, attestation.CodeEndorsementSVN},
		{"subject", wrongSubject, body, nil, of(wrongSubject), chainCode},
		{"usage", wrongUsage, body, nil, of(wrongUsage), chainCode},
		{"signed after the end", old, body, nil, of(old), chainCode},
		{"signed before the begin", late, body, nil, of(late), chainCode},
		{"no root", good, body, chained(good.Chain[0], good.Chain[1]), nil, chainCode},
		{"a leaf alone", good, body, chained(good.Chain[0]), nil, chainCode},
		{
			"no chain", good, body, drop(cose.HeaderLabelX5Chain), nil, bad,
		},
		{"a chain of text", good, body, chained([]byte("x"), []byte("y")), nil, bad},
		{"a long chain", good, body, chained(bytes9(good.Chain[0])...), nil, bad},
		{"no feed", good, body, drop(headerFeed), nil, bad},
		{"a time that is text", good, body, set(headerTime, "now"), nil, bad},
		{"a critical header", good, body, func(h cose.ProtectedHeader) {
			h[cose.HeaderLabelCritical] = []any{"unheard"}
			h["unheard"] = 1
		}, nil, attestation.CodeUnsupported},
		{"two versions", good, `{"svn":1,` + body[1:], nil, nil, bad},
		{"no launches", good, `{"svn":1,"launches":[]}`, nil, nil, bad},
		{
			"a platform that is not known", good, `{"svn":1,"launches":[{"platform":"sgx","digest":"` + cosetest.Digest + `"}]}`,
			nil, nil, bad,
		},
		{"no JSON", good, "x", nil, nil, bad},
		{"no svn", good, `{"x-ms-sevsnpvm-launchmeasurement":"` + cosetest.Digest + `"}`, nil, nil, bad},
		{"svn -1", good, cosetest.Body("-1"), nil, nil, bad},
		{"svn 1e9", good, cosetest.Body("1e9"), nil, nil, bad},
		{"svn 0101", good, cosetest.Body(`"0101"`), nil, nil, bad},
		{"a short cosetest.Digest", good, strings.Replace(body, "abab", "ab", 1), nil, nil, bad},
		{"no issuer expected", good, body, nil, func(e *Expectations) { e.Issuer = "" }, misused},
		{"no feed expected", good, body, nil, func(e *Expectations) { e.Feed = "" }, misused},
		{"no version expected", good, body, nil, func(e *Expectations) { e.MinSVN = nil }, misused},
		{
			"no did", good, body, set(headerIssuer, "me"), func(e *Expectations) { e.Issuer = "me" },
			misused,
		},
	} {
		w := expect(good, 101)
		if tc.want != nil {
			tc.want(&w)
		}
		_, err := Verify(tc.by.Sign(t, tc.payload, tc.edit), w)
		if f, ok := attestation.FailureOf(err); !ok || f.Code != tc.code {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.code)
		}
	}
}

func bytes9(v any) []any {
	var out []any
	for range maxChain + 1 {
		out = append(out, v)
	}
	return out
}

// Whatever byte is changed, the endorsement is refused, but for the time stamp outside of the signature.
func TestNoFlippedBitIsAccepted(t *testing.T) {
	v := cosetest.Make(t, nil)
	b := v.Sign(t, cosetest.Body("101"), nil)
	at := bytes.Index(b, []byte("timestamp"))
	free := func(i int) bool { return i >= at-2 && i < at+len("timestamp")+1+len("ignored") }
	for i := range b {
		if free(i) {
			continue
		}
		b[i] ^= 1
		if e, err := Verify(b, expect(v, 0)); err == nil {
			t.Errorf("byte %d of %d: %+v", i, len(b), e)
		}
		b[i] ^= 1
	}
	for n := 0; n < len(b); n += 16 {
		if _, err := Verify(b[:n], expect(v, 0)); err == nil {
			t.Errorf("%d bytes are enough", n)
		}
	}
	if _, err := Verify(append(b, 0), expect(v, 0)); err == nil {
		t.Error("a byte may follow")
	}
}

func TestAChainHasAName(t *testing.T) {
	for _, name := range []string{"ContainerPlat", "Container Plat+1: of coco, 100%"} {
		v := cosetest.Make(t, func(s *cosetest.Spec) { s.Subject = name })
		chain, err := chainOf(v.Chain)
		if err != nil {
			t.Fatal(err)
		}
		did, err := IssuerOf(chain)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := parseDID(did); err != nil {
			t.Errorf("%s: %v", did, err)
		}
	}
	if did, err := IssuerOf(nil); err == nil {
		t.Errorf("no chain has the name %s", did)
	}
}

func TestNamesOfIssuers(t *testing.T) {
	fingerprint := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for _, text := range []string{
		"did:x509:0:sha256:" + fingerprint + "::eku:1.2.3",
		"did:x509:0:sha256:" + fingerprint + "::subject:CN:a:O:b::san:dns:example.com",
	} {
		if _, err := parseDID(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{
		"", "did:x509", "did:web:0:sha256:" + fingerprint + "::eku:1", "did:x509:1:sha256:" + fingerprint + "::eku:1",
		"did:x509:0:sha1:" + fingerprint + "::eku:1", "did:x509:0:sha384:" + fingerprint + "::eku:1",
		"did:x509:0:sha256:" + fingerprint, "did:x509:0:sha256:" + fingerprint + "::",
		"did:x509:0:sha256:" + fingerprint + "=::eku:1", "did:x509:0:sha256:" + fingerprint + "::eku",
		"did:x509:0:sha256:" + fingerprint + "::eku:1:2", "did:x509:0:sha256:" + fingerprint + "::subject:CN",
		"did:x509:0:sha256:" + fingerprint + "::fulcio-issuer:x", "did:x509:0:sha256:" + fingerprint + "::eku:%zz",
		"did:x509:0:sha256:" + fingerprint + "::eku:" + strings.Repeat("1", maxDID),
	} {
		if d, err := parseDID(text); err == nil {
			t.Errorf("parseDID(%q) = %+v", text, d)
		}
	}
}

func FuzzVerify(f *testing.F) {
	v := cosetest.Make(f, nil)
	f.Add(v.Sign(f, cosetest.Body("101"), nil))
	f.Add([]byte{})
	w := expect(cosetest.Make(f, nil), 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := Verify(b, w); err == nil {
			t.Fatalf("%+v", e)
		} else if _, ok := attestation.FailureOf(err); !ok {
			t.Fatalf("%v has no code", err)
		}
	})
}

func FuzzParseDID(f *testing.F) {
	f.Add("did:x509:0:sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA::eku:1.2.3")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDID(text)
		if err == nil && (len(d.policies) == 0 || len(d.fingerprint) < 32) {
			t.Fatalf("%q demands nothing: %+v", text, d)
		}
	})
}
