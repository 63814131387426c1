// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
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
