// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
)

// An AK that is not restricted signs a quote that its owner made up.
func TestKeysWithOtherAttributesAreRefused(t *testing.T) {
	for bit := range 32 {
		p := tpmtest.NewECC(t)
		p.Attributes ^= 1 << bit
		_, err := newRound(t, p, nil).verify()
		switch bit {
		case 1, 4, 5, 16, 17, 18:
			refused(t, err, attestation.CodeKeyAttributes, "key.attributes")
		default:
			if err != nil {
				t.Errorf("bit %d: %v", bit, err)
			}
		}
	}
}

// A key without a scheme of its own leaves it to each signature.
func TestKeysWithoutASchemeVerify(t *testing.T) {
	for name, p := range keys(t) {
		r := newRound(t, p, nil)
		r.evidence.Key = p.Public(t, tpmtest.Null)
		if _, err := r.verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBareKeysOnlyWhenSaid(t *testing.T) {
	for name, p := range map[string]*tpmtest.TPM{"RSA": tpmtest.NewRSA(t), "ECC": tpmtest.NewECC(t)} {
		r := newRound(t, p, nil)
		der, err := x509.MarshalPKIXPublicKey(p.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		r.evidence.Key = der
		_, err = r.verify()
		refused(t, err, attestation.CodeKeyAttributes, "key.attributes")
		r.want.BareKey = true
		if _, err := r.verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r.evidence.Key = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		if _, err := r.verify(); err != nil {
			t.Errorf("%s in PEM: %v", name, err)
		}
		r.want.KeyNames = [][]byte{{}, nil} // a bare key has no name
		_, err = r.verify()
		refused(t, err, attestation.CodeKeyOrigin, "key.name")
	}
}

func TestKeysOfEachFormAreTheSame(t *testing.T) {
	p := tpmtest.NewECC(t)
	var names []string
	for _, b := range [][]byte{p.Public(t, tpmtest.ECDSA), p.Public(t, tpmtest.ECDSA)[2:]} {
		k, err := tpm.ParseKey(b)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, k.Name.String())
	}
	sum := sha256.Sum256(p.Public(t, tpmtest.ECDSA)[2:])
	if want := "000b" + attestation.Hex(sum[:]).String(); names[0] != want || names[1] != want {
		t.Errorf("names %v, want %s", names, want)
	}
}

func TestOriginOfTheKey(t *testing.T) {
	p := tpmtest.NewECC(t)
	r := newRound(t, p, nil)
	r.want.Undecided = r.want.Undecided[:2]
	_, err := r.verify()
	refused(t, err, attestation.CodeExpectation, "key")
	r.want.KeyNames = [][]byte{bytes.Repeat([]byte{1}, 34)}
	_, err = r.verify()
	refused(t, err, attestation.CodeKeyOrigin, "key.name")
	k, err := tpm.ParseKey(r.evidence.Key)
	if err != nil {
		t.Fatal(err)
	}
	r.want.KeyNames = append(r.want.KeyNames, k.Name)
	if _, err := r.verify(); err != nil {
		t.Error(err)
	}
	der, err := x509.MarshalPKIXPublicKey(p.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	r.want.KeyNames, r.want.KeyHashes = nil, [][]byte{sum[:]}
	if _, err := r.verify(); err != nil {
		t.Error(err)
	}
	r.want.KeyHashes[0][0]++
	_, err = r.verify()
	refused(t, err, attestation.CodeKeyOrigin, "key.hash")
}

func TestCertificateOfTheKey(t *testing.T) {
	p, other := tpmtest.NewECC(t), tpmtest.NewECC(t)
	altName := pkix.Extension{
		Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true,
		Value: []byte{0x30, 4, 0xa4, 2, 0x30, 0},
	}
	unknown := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}
	for _, tc := range []struct {
		name string
		by   *tpmtest.TPM
		edit func(*x509.Certificate)
		now  time.Time
		code attestation.Code
	}{
		{"as it should be", p, nil, tpmtest.Now, ""},
		{
			"with the name of a TPM", p, func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{altName} },
			tpmtest.Now, "",
		},
		{"of another key", other, nil, tpmtest.Now, attestation.CodeKeyOrigin},
		{"expired", p, nil, tpmtest.Now.AddDate(0, 2, 0), attestation.CodeCollateralExpired},
		{"early", p, nil, tpmtest.Now.AddDate(0, -2, 0), attestation.CodeCollateralEarly},
		{
			"with a critical extension", p, func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{unknown} },
			tpmtest.Now,
			attestation.CodeKeyOrigin,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRound(t, p, nil)
			cert, ca := tc.by.Certificate(t, tc.edit)
			root, err := x509.ParseCertificate(ca)
			if err != nil {
				t.Fatal(err)
			}
			r.want.Roots = x509.NewCertPool()
			r.want.Roots.AddCert(root)
			r.evidence.Certificates, r.collateral.Now = cert, tc.now
			c, err := r.verify()
			if tc.code != "" {
				refused(t, err, tc.code, "key.certificate")
				return
			}
			if err != nil || c.Details["key_certificate"] != "CN=TPM of pod 7" {
				t.Errorf("%v, %v", c, err)
			}
			r.want.Roots = x509.NewCertPool()
			_, err = r.verify()
			refused(t, err, attestation.CodeKeyOrigin, "key.certificate")
			r.evidence.Certificates = nil
			_, err = r.verify()
			refused(t, err, attestation.CodeKeyOrigin, "key.certificate")
		})
	}
}

// Each case changes two bytes of a key of P-256, as a TPM writes it.
func TestPublicAreasAreRefused(t *testing.T) {
	r := newRound(t, tpmtest.NewECC(t), nil)
	good := r.evidence.Key
	for _, tc := range []struct {
		name  string
		at    int
		value uint16
		code  attestation.Code
		field string
	}{
		{"a type that signs nothing", 2, 8, attestation.CodeUnsupported, "key.type"},
		{"SHA-1 for the name", 4, tpmtest.SHA1, attestation.CodeUnsupported, "key.name_alg"},
		{"a policy beyond the end", 10, 0xffff, attestation.CodeMalformed, "key.auth_policy"},
		{"a cipher", 12, 6, attestation.CodeUnsupported, "key.symmetric"},
		{"another scheme", 14, tpmtest.RSASSA, attestation.CodeSignature, "quote.signature"},
		{"SHA-1 for signatures", 16, tpmtest.SHA1, attestation.CodeUnsupported, "key.scheme.hash"},
		{"another hash for signatures", 16, tpmtest.SHA384, attestation.CodeSignature, "quote.signature"},
		{"an unknown curve", 18, 0x10, attestation.CodeUnsupported, "key.curve"},
		{"the wrong curve", 18, 4, attestation.CodeMalformed, "key.point"},
		{"a derivation", 20, 7, attestation.CodeUnsupported, "key.kdf"},
		{"a short coordinate", 22, 31, attestation.CodeMalformed, "key.y"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.evidence.Key = bytes.Clone(good)
			binary.BigEndian.PutUint16(r.evidence.Key[tc.at:], tc.value)
			_, err := r.verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

// Keys that are too weak, or of a kind that TPMs do not have.
func TestWeakKeysAreRefused(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for field, key := range map[string]any{"key.size": short.Public(), "key.type": edwards, "key.curve": p224.Public()} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm.ParseKey(der)
		refused(t, err, attestation.CodeUnsupported, field)
	}
	_, err = tpm.ParseKey([]byte{0x30, 1, 2, 3})
	refused(t, err, attestation.CodeMalformed, "key")
	_, err = tpm.ParseKey(bytes.Repeat([]byte{0x30}, 64<<10+1))
	refused(t, err, attestation.CodeMalformed, "key")
}

// A key signs by its own scheme only, though another one would hold too.
func TestSignaturesOfOtherSchemesAreRefused(t *testing.T) {
	p := tpmtest.NewRSA(t)
	public := p.Public(t, tpmtest.RSASSA)
	for name, change := range map[string]func(*tpmtest.TPM){
		"scheme": func(p *tpmtest.TPM) { p.Scheme = tpmtest.RSAPSS },
		"hash":   func(p *tpmtest.TPM) { p.Hash = tpmtest.SHA384 },
	} {
		other := *p
		change(&other)
		r := newRound(t, &other, nil)
		if _, err := r.verify(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.evidence.Key = public
		_, err := r.verify()
		refused(t, err, attestation.CodeSignature, "quote.signature")
	}
}

func TestCertificatesAreBounded(t *testing.T) {
	p := tpmtest.NewECC(t)
	r := newRound(t, p, nil)
	r.want.Roots = x509.NewCertPool()
	cert, _ := p.Certificate(t, nil)
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, b := range map[string][]byte{
		"no certificate": []byte("none"), "nine": bytes.Repeat(block, 9), "too long": append(block, make([]byte, 64<<10)...),
		"no DER": {0x30, 1},
	} {
		r.evidence.Certificates = b
		_, err := r.verify()
		if f, ok := attestation.FailureOf(err); !ok || f.Code != attestation.CodeKeyOrigin || f.Cause == nil {
			t.Errorf("%s: %v", name, err)
		} else if _, unknown := errors.AsType[x509.UnknownAuthorityError](f.Cause); unknown {
			t.Errorf("%s: read, and refused as %v", name, err)
		}
	}
}
