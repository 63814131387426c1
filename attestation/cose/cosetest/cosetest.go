// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cosetest makes endorsements of launch digests for tests, by vendors of its own.
package cosetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/veraison/go-cose"
)

// Signed is the signing time; the signer's certificate is valid for a few months around it.
var Signed = time.Date(2023, 11, 1, 0, 0, 0, 0, time.UTC)

// Feed is the product.
const Feed = "ContainerPlat-AMD-UVM"

const usage = "1.3.6.1.4.1.311.76.59.1.2"

// Vendor signs endorsements.
type Vendor struct {
	Chain []any // DER, the signer's first
	DID   string

	// Key is the signer's.
	Key crypto.Signer
	alg cose.Algorithm
}

// Spec changes a vendor.
type Spec struct {
	// Subject is the common name of the signer.
	Subject string
	// From and Until are when its certificate is valid.
	From, Until time.Time
	// Usage is its extended key usage.
	Usage asn1.ObjectIdentifier
	Alg   cose.Algorithm
}

// Make makes a vendor.
func Make(tb testing.TB, edit func(*Spec)) Vendor {
	tb.Helper()
	s := Spec{
		Subject: "ContainerPlat", From: Signed.AddDate(0, -2, 0), Until: Signed.AddDate(0, 3, 0),
		Usage: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 76, 59, 1, 2}, Alg: cose.AlgorithmES384,
	}
	if edit != nil {
		edit(&s)
	}
	v := Vendor{alg: s.Alg}
	var err error
	switch s.Alg {
	case cose.AlgorithmPS384:
		v.Key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		v.Key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	must(tb, err)
	cert := func(name string, ca bool, up *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"Tests: of coco"}},
			NotBefore: Signed.AddDate(-5, 0, 0), NotAfter: Signed.AddDate(5, 0, 0), IsCA: ca, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign,
		}
		if !ca {
			c.NotBefore, c.NotAfter, c.KeyUsage = s.From, s.Until, x509.KeyUsageDigitalSignature
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{s.Usage}
		}
		if up == nil {
			up = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, up, pub, by)
		must(tb, err)
		parsed, err := x509.ParseCertificate(der)
		must(tb, err)
		return parsed
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	middleKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	root := cert("root", true, nil, rootKey.Public(), rootKey)
	middle := cert("middle", true, root, middleKey.Public(), rootKey)
	leaf := cert(s.Subject, false, middle, v.Key.Public(), middleKey)
	v.Chain = []any{leaf.Raw, middle.Raw, root.Raw}
	v.DID = didOf(root.Raw, "subject:CN:ContainerPlat:O:Tests%3A%20of%20coco", "eku:"+usage)
	return v
}

func didOf(der []byte, policies ...string) string {
	sum := sha256.Sum256(der)
	return "did:x509:0:sha256:" + base64.RawURLEncoding.EncodeToString(sum[:]) + "::" + strings.Join(policies, "::")
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// Digest is the launch digest that the endorsements name.
var Digest = strings.Repeat("ab", 48)

// Body is a payload; svn is JSON.
func Body(svn string) string {
	return fmt.Sprintf(`{"x-ms-sevsnpvm-guestsvn":%s,"x-ms-sevsnpvm-launchmeasurement":%q}`, svn, Digest)
}

// Sign makes an endorsement; edit changes its protected header.
func (v Vendor) Sign(tb testing.TB, payload string, edit func(cose.ProtectedHeader)) []byte {
	tb.Helper()
	signer, err := cose.NewSigner(v.alg, v.Key)
	must(tb, err)
	h := cose.ProtectedHeader{
		cose.HeaderLabelContentType: "application/json", cose.HeaderLabelX5Chain: v.Chain,
		"iss": v.DID, "feed": Feed, "signingtime": Signed.Unix(),
	}
	h.SetAlgorithm(v.alg)
	if edit != nil {
		edit(h)
	}
	b, err := cose.Sign1(rand.Reader, signer, cose.Headers{
		Protected: h, Unprotected: cose.UnprotectedHeader{"timestamp": []byte("ignored")},
	}, []byte(payload), nil)
	must(tb, err)
	return b
}
