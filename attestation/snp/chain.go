// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/coco-shim/coco/attestation"
)

// path is a chain of certificates that holds: the endorsement's, the intermediate's and the root's.
type path struct {
	product Product
	leaf    *x509.Certificate
	middle  *x509.Certificate
	root    *x509.Certificate
}

// chain finds the path from an endorsement to a root. Each certificate must name its issuer and carry its signature.
// Only products that stand in allowed are tried.
func (v Verifier) chain(leaf *x509.Certificate, extra []*x509.Certificate, allowed []Product) (*path, error) {
	var errs []error
	for _, p := range allowed {
		iss, ok := v.issuers[p]
		if !ok || iss.Root == nil {
			continue
		}
		middles := make([]*x509.Certificate, 0, len(iss.Intermediates)+len(extra))
		for _, m := range append(append(middles, iss.Intermediates...), extra...) {
			if !bytes.Equal(m.RawSubject, leaf.RawIssuer) || !bytes.Equal(m.RawIssuer, iss.Root.RawSubject) {
				continue
			}
			if err := errors.Join(issued(m, leaf), issued(iss.Root, m)); err != nil {
				errs = append(errs, err)
				continue
			}
			return &path{p, leaf, m, iss.Root}, nil
		}
	}
	if len(errs) == 0 {
		errs = append(errs, fmt.Errorf("no trusted issuer is named %s", leaf.Issuer))
	}
	return nil, errors.Join(errs...)
}

// minRSA is the length of AMD's keys.
const minRSA = 4096

// issued tells whether a certificate was signed by a CA's key, with the algorithms that AMD uses.
func issued(ca, c *x509.Certificate) error {
	key, ok := ca.PublicKey.(*rsa.PublicKey)
	switch {
	case !ok || key.N.BitLen() < minRSA:
		return fmt.Errorf("the key of %s is not RSA of %d bits", ca.Subject, minRSA)
	case !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s may not sign certificates", ca.Subject)
	case c.SignatureAlgorithm != x509.SHA384WithRSAPSS:
		return fmt.Errorf("the certificate of %s is signed with %s, not RSA-PSS and SHA-384", c.Subject, c.SignatureAlgorithm)
	case len(c.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("%s has unknown critical extensions %s", c.Subject, c.UnhandledCriticalExtensions)
	}
	if err := ca.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("the certificate of %s is not signed by %s: %w", c.Subject, ca.Subject, err)
	}
	return nil
}

// validity checks the times of the path's certificates.
func (p *path) validity(t *attestation.Trail, col attestation.Collateral) error {
	for _, c := range []struct {
		name string
		cert *x509.Certificate
	}{{"certificate", p.leaf}, {"intermediate", p.middle}, {"root", p.root}} {
		if err := during(t, c.name+" validity", c.cert.NotBefore, c.cert.NotAfter, col); err != nil {
			return err
		}
	}
	return nil
}

// during checks that the time of the verification lies within the validity of a document.
func during(t *attestation.Trail, field string, from, to time.Time, col attestation.Collateral) error {
	now := col.Now.UTC().Format(time.RFC3339)
	if col.Now.Before(from) {
		return fail(attestation.CodeCollateralEarly, field, "from %s on", "%s", from.UTC().Format(time.RFC3339), now)
	}
	expected := "until " + to.UTC().Format(time.RFC3339)
	late := col.Now.After(to)
	if late && col.AllowExpired {
		expected += ", or expired as the caller allows"
	}
	return t.Check(!late || col.AllowExpired, attestation.Check{
		Code: attestation.CodeCollateralExpired, Field: field, Expected: expected, Got: now,
	})
}

const maxCRL = 1 << 20

// revocation looks for the path's certificates on the root's list of revoked ones.
func (p *path) revocation(t *attestation.Trail, col attestation.Collateral, left bool) error {
	docs := col.All(KindCRL)
	if len(docs) == 0 && left {
		t.Undecided(ItemRevocation)
		return nil
	}
	list, err := p.list(docs)
	if err != nil {
		return err
	}
	if err := during(t, "crl validity", list.ThisUpdate, list.NextUpdate, col); err != nil {
		return err
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(p.middle.SerialNumber) == 0 {
			return fail(attestation.CodeRevoked, "intermediate", "not on the list", "revoked on %s",
				e.RevocationTime.UTC().Format(time.RFC3339))
		}
	}
	issued := list.ThisUpdate.UTC().Format(time.RFC3339)
	got := fmt.Sprintf("list of %d, issued %s", len(list.RevokedCertificateEntries), issued)
	return t.Check(true, attestation.Check{
		Code: attestation.CodeRevoked, Field: "intermediate", Expected: "not on the list", Got: got,
	})
}

// list returns the newest list that the path's root has signed. Lists of other roots are passed over.
func (p *path) list(docs []attestation.Document) (*x509.RevocationList, error) {
	var newest *x509.RevocationList
	bad := func(d attestation.Document, expected string, err error) error {
		return attestation.Fail(attestation.CodeCollateralInvalid, "crl", expected, d.Name+" is not", err)
	}
	for _, d := range docs {
		list, err := parseCRL(d.Data)
		if err != nil {
			return nil, bad(d, "a list of revoked certificates", err)
		}
		if !bytes.Equal(list.RawIssuer, p.root.RawSubject) {
			continue
		}
		if err := list.CheckSignatureFrom(p.root); err != nil {
			return nil, bad(d, "signed by "+p.root.Subject.CommonName, err)
		}
		if newest == nil || list.ThisUpdate.After(newest.ThisUpdate) {
			newest = list
		}
	}
	if newest == nil {
		return nil, fail(attestation.CodeCollateralMissing, "crl", "a list of %s", "none", p.root.Subject.CommonName)
	}
	return newest, nil
}

func parseCRL(b []byte) (*x509.RevocationList, error) {
	if len(b) > maxCRL {
		return nil, fmt.Errorf("%d bytes; at most %d are read", len(b), maxCRL)
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	list, err := x509.ParseRevocationList(b)
	if err != nil {
		return nil, err
	}
	if list.NextUpdate.IsZero() {
		return nil, errors.New("the list has no end of its validity")
	}
	for _, x := range list.Extensions {
		if x.Critical { // such as one that narrows what the list covers
			return nil, fmt.Errorf("the list has an unknown critical extension %s", x.Id)
		}
	}
	return list, nil
}

// productsFor returns the lines whose roots may have issued a report's certificate.
func productsFor(r *Report) ([]Product, error) {
	if r.Version < 3 {
		return products, nil // such a report does not name its processor
	}
	p, ok := productOf(r.CPU)
	if !ok {
		return nil, fail(attestation.CodeUnsupported, "cpuid", "Milan, Genoa or Turin", "family %#x model %#x",
			r.CPU.Family, r.CPU.Model)
	}
	return []Product{p}, nil
}
