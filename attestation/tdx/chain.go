// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/coco-shim/coco/attestation"
)

// intelRootKey is the public key of Intel's SGX Root CA, which also stands for TDX: the uncompressed point.
const intelRootKey = "040ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b4458561a36e705525f5" +
	"67918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"

// Subjects of Intel's certificates. They separate the duties: without them any key below the root could sign TCB info.
const (
	cnPCK         = "Intel SGX PCK Certificate"
	cnPlatformCA  = "Intel SGX PCK Platform CA"
	cnProcessorCA = "Intel SGX PCK Processor CA"
	cnTCBSigning  = "Intel SGX TCB Signing"
)

// IntelRoot returns the key of the root that evidence of production hardware leads to.
func IntelRoot() *ecdsa.PublicKey {
	point, err := hex.DecodeString(intelRootKey)
	if err != nil {
		panic("the root's key is a constant of this package: " + err.Error())
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		panic("the root's key is a constant of this package: " + err.Error())
	}
	return key
}

// checkChain checks certificates from the leaf up to the root: number, subjects, signatures, and validity at the time
// of
// the verification. Names are the allowed subjects from the leaf up, without the root.
func (v *verification) checkChain(field string, certs []*x509.Certificate, names ...[]string) error {
	want := len(names) + 1
	if len(certs) != want {
		return attestation.Fail(attestation.CodeChain, field, fmt.Sprintf("%d certificates", want), fmt.Sprint(len(certs)),
			nil)
	}
	root := certs[want-1]
	if key, ok := root.PublicKey.(*ecdsa.PublicKey); !ok || !v.root().Equal(key) {
		return attestation.Fail(attestation.CodeChain, field, "the key of Intel's root certificate",
			"another key of "+root.Subject.String(), nil)
	}
	for i, c := range certs {
		parent := certs[min(i+1, want-1)]
		if i < len(names) && !slices.Contains(names[i], c.Subject.CommonName) {
			return attestation.Fail(attestation.CodeChain, field+".subject", fmt.Sprintf("%q", names[i]),
				fmt.Sprintf("%q", c.Subject.CommonName), nil)
		}
		if err := signedBy(c, parent); err != nil {
			return attestation.Fail(attestation.CodeChain, field, "each certificate signed by the next one",
				fmt.Sprintf("%q not signed by %q", c.Subject.CommonName, parent.Subject.CommonName), err)
		}
		if i == 0 && c.IsCA {
			return attestation.Fail(attestation.CodeChain, field, "an end entity first", "a CA", nil)
		}
		if err := v.validity(fmt.Sprintf("%s[%d].validity", field, i), c.NotBefore, c.NotAfter); err != nil {
			return err
		}
	}
	return v.trail.Check(true, attestation.Check{
		Code: attestation.CodeChain, Field: field, Expected: "certificates up to Intel's root",
		Got: certs[0].Subject.CommonName,
	})
}

// signedBy checks names, signature and the parent's right to sign certificates.
func signedBy(c, parent *x509.Certificate) error {
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
		return errors.New("the issuer's name is not that of the next certificate")
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("critical extension %s is unknown", c.UnhandledCriticalExtensions[0])
	}
	return c.CheckSignatureFrom(parent)
}

// validity checks that a document or certificate is valid at the time of the verification. The end of a document's
// validity counts as part of it.
func (v *verification) validity(field string, from, until time.Time) error {
	now := v.collateral.Now
	span := attestation.Check{
		Field: field, Expected: fmt.Sprintf("from %s to %s", stamp(from), stamp(until)), Got: stamp(now),
	}
	v.earliestEnd = earlier(v.earliestEnd, until)
	if now.Before(from) {
		span.Code = attestation.CodeCollateralEarly
		return &attestation.Failure{Check: span}
	}
	span.Code = attestation.CodeCollateralExpired
	expired := now.After(until)
	v.expired = v.expired || expired
	if expired && v.collateral.AllowExpired {
		span.Expected = "expired documents are accepted; it was valid " + span.Expected
	}
	return v.trail.Check(!expired || v.collateral.AllowExpired, span)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// findCRL returns the list of an issuer, with its signature and validity checked.
func (v *verification) findCRL(kind attestation.Kind, issuer *x509.Certificate) (*x509.RevocationList, error) {
	docs := v.collateral.All(kind)
	for _, d := range docs {
		list, err := parseCRL(d.Data)
		if err != nil {
			return nil, attestation.Fail(attestation.CodeCollateralInvalid, string(kind), "a list of revoked certificates",
				d.Name, err)
		}
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
			continue
		}
		if err := list.CheckSignatureFrom(issuer); err != nil {
			return nil, attestation.Fail(attestation.CodeCollateralInvalid, string(kind),
				"a signature of "+issuer.Subject.CommonName, "another one", err)
		}
		return list, v.validity(string(kind), list.ThisUpdate, list.NextUpdate)
	}
	return nil, attestation.Fail(attestation.CodeCollateralMissing, string(kind),
		"the list of "+issuer.Subject.CommonName, fmt.Sprintf("%d of other issuers", len(docs)), nil)
}

// parseCRL reads a list in DER or PEM. One without an end of its validity counts as expired. A list with a critical
// extension may be a part of the whole, and is refused.
func parseCRL(b []byte) (*x509.RevocationList, error) {
	if len(b) > maxDocument {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(b), maxDocument)
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	list, err := x509.ParseRevocationList(b)
	if err != nil {
		return nil, err
	}
	for _, e := range list.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("critical extension %s is unknown", e.Id)
		}
	}
	return list, nil
}

// notRevoked looks for a certificate in the list of its issuer.
func (v *verification) notRevoked(field string, c *x509.Certificate, list *x509.RevocationList) error {
	serial := c.SerialNumber
	revoked := slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(serial) == 0
	})
	got := "not listed"
	if revoked {
		got = "revoked"
	}
	return v.trail.Check(!revoked, attestation.Check{
		Code: attestation.CodeRevoked, Field: field, Expected: "serial number " + serial.Text(16) + " not listed", Got: got,
	})
}

// verifyRaw checks a signature of 64 bytes, r and s, over the SHA-256 of a message.
func verifyRaw(key *ecdsa.PublicKey, message, signature []byte) error {
	if len(signature) != signatureSize {
		return fmt.Errorf("it has %d bytes, not %d", len(signature), signatureSize)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(signature[:32]),
		new(big.Int).SetBytes(signature[32:]),
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(key, sum[:], der) {
		return errors.New("it is not one of this key over these bytes")
	}
	return nil
}
