// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/coco-shim/coco/attestation"
)

// Verify checks evidence in the order that the package's comment tells. It returns the claims, or the first check that
// failed as an *attestation.Failure.
func (v Verifier) Verify(
	ev attestation.Evidence, col attestation.Collateral, want Expectations,
) (*attestation.Claims, error) {
	var trail attestation.Trail
	r, err := begin(&trail, ev, want)
	if err != nil {
		return nil, err
	}
	if col.Now.IsZero() {
		return nil, attestation.Fail(attestation.CodeExpectation, "time", "the time of the verification", "none", nil)
	}
	found, err := gather(r.KeyInfo.SigningKey(), ev.Certificates, col)
	if err != nil {
		return nil, err
	}
	allowed, err := productsFor(r)
	if err != nil {
		return nil, err
	}
	s := signed{report: r, raw: ev.Report[:signedSize], col: col, want: &want}
	var first error
	for _, leaf := range found.leaves {
		t := trail.Fork() // each certificate has a record of its own
		var p Product
		if p, err = s.genuine(v, &t, leaf, found.others, allowed); err == nil {
			if err := want.expected(&t, r, p); err != nil {
				return nil, err
			}
			return t.Claim(r.claims(p)), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// begin checks what needs no certificate.
func begin(t *attestation.Trail, ev attestation.Evidence, want Expectations) (*Report, error) {
	if ev.Type != attestation.SNP {
		return nil, fail(attestation.CodeMalformed, "type", "%s", "%q", attestation.SNP, ev.Type)
	}
	r, err := Parse(ev.Report)
	if err != nil {
		return nil, err
	}
	kind := r.KeyInfo.SigningKey()
	signs := kind == VCEK || kind == VLEK
	allowed := want.Source.Keys
	if len(allowed) == 0 {
		allowed = []SigningKey{VCEK, VLEK}
	}
	hidden := r.KeyInfo.MaskChipKey() || r.masked()
	for _, c := range []struct {
		ok bool
		attestation.Check
	}{
		{true, attestation.Check{
			Code: attestation.CodeReserved, Field: "version", Expected: "2 to 5, reserved fields zero",
			Got: fmt.Sprint(r.Version),
		}},
		{signs, attestation.Check{
			Code: attestation.CodeUnsigned, Field: "key_info.signing_key", Expected: "vcek or vlek", Got: kind.String(),
		}},
		{r.SigAlgo == algECDSA, attestation.Check{
			Code: attestation.CodeUnsupported, Field: "signature_algo", Expected: "1 (ECDSA P-384 with SHA-384)",
			Got: fmt.Sprint(r.SigAlgo),
		}},
		{slices.Contains(allowed, kind), attestation.Check{
			Code: attestation.CodeKeyKind, Field: "key_info.signing_key", Expected: words(allowed), Got: kind.String(),
		}},
		{!hidden || kind == VLEK, attestation.Check{
			Code: attestation.CodeChipMasked, Field: "chip_id", Expected: "visible, or signed by a vlek", Got: r.visibility(),
		}},
	} {
		if err := t.Check(c.ok, c.Check); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// algECDSA is SIGNATURE_ALGO for ECDSA P-384 with SHA-384.
const algECDSA = 1

func (r *Report) masked() bool { return r.ChipID == [64]byte{} }

func (r *Report) visibility() string {
	if r.masked() || r.KeyInfo.MaskChipKey() {
		return "hidden by the host, " + r.KeyInfo.SigningKey().String()
	}
	return "visible"
}

// signed is a report with all that decides whether it is genuine.
type signed struct {
	report *Report
	raw    []byte // the bytes that the signature covers
	col    attestation.Collateral
	want   *Expectations
}

// genuine proves that AMD's hardware made the report, by one certificate.
func (s signed) genuine(
	v Verifier, t *attestation.Trail, leaf *x509.Certificate, others []*x509.Certificate, allowed []Product,
) (Product, error) {
	kind := s.report.KeyInfo.SigningKey()
	expected := "issued by the root of " + words(allowed)
	p, err := v.chain(leaf, others, allowed)
	if err != nil {
		return "", attestation.Fail(attestation.CodeChain, kind.String(), expected, "not", err)
	}
	if err := t.Check(true, attestation.Check{
		Code: attestation.CodeChain, Field: kind.String(), Expected: expected,
		Got: p.root.Subject.CommonName + ", " + p.middle.Subject.CommonName,
	}); err != nil {
		return "", err
	}
	if err := p.validity(t, s.col); err != nil {
		return "", err
	}
	if err := p.revocation(t, s.col, s.want.Leaves(ItemRevocation)); err != nil {
		return "", err
	}
	e, err := parseEndorsement(leaf, kind)
	if err != nil {
		return "", attestation.Fail(attestation.CodeCertificate, kind.String(), "a certificate of AMD's form", "not", err)
	}
	if err := t.Check(s.verifies(e.key), attestation.Check{
		Code: attestation.CodeSignature, Field: "signature", Expected: "of bytes 0 to 671 by the " + kind.String() + "'s key",
		Got: fmt.Sprintf("%x…", s.report.signature[:8]),
	}); err != nil {
		return "", err
	}
	if err := s.certified(t, e, p.product); err != nil {
		return "", err
	}
	return p.product, s.order(t, p.product)
}

// verifies checks the signature: two numbers of 72 bytes, little-endian.
func (s signed) verifies(key *ecdsa.PublicKey) bool {
	number := func(at int) *big.Int {
		b := slices.Clone(s.report.signature[at : at+componentLen])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	digest := sha512.Sum384(s.raw)
	return ecdsa.Verify(key, digest[:], number(0), number(componentLen))
}

// certified compares what the certificate says with what the key has signed.
func (s signed) certified(t *attestation.Trail, e *endorsement, p Product) error {
	r := s.report
	if allowed := s.want.Source.Products; len(allowed) > 0 {
		if err := t.Check(slices.Contains(allowed, p), attestation.Check{
			Code: attestation.CodeProduct, Field: "product", Expected: words(allowed), Got: string(p),
		}); err != nil {
			return err
		}
	}
	if err := t.Check(p.namedBy(e.product), attestation.Check{
		Code: attestation.CodeCertificate, Field: "certificate.product", Expected: string(p), Got: e.product,
	}); err != nil {
		return err
	}
	reported, ok := p.TCB(r.TCB.Reported)
	if !ok {
		return fail(attestation.CodeReserved, "reported_tcb", "reserved bytes zero", "%x", r.TCB.Reported)
	}
	if err := t.Check(e.tcb == reported, attestation.Check{
		Code: attestation.CodeCertificate, Field: "certificate.tcb", Expected: reported.String(), Got: e.tcb.String(),
	}); err != nil {
		return err
	}
	if r.KeyInfo.SigningKey() == VLEK {
		allowed := s.want.Source.Providers
		return t.Check(len(allowed) == 0 || slices.Contains(allowed, e.csp), attestation.Check{
			Code: attestation.CodeCloudProvider, Field: "certificate.csp_id", Expected: orAny(allowed), Got: e.csp,
		})
	}
	n := p.hwidLen()
	return t.Check(len(e.hwid) == n && bytes.Equal(e.hwid, r.ChipID[:n]), attestation.Check{
		Code: attestation.CodeCertificate, Field: "certificate.hwid", Expected: fmt.Sprintf("%x", r.ChipID[:n]),
		Got: fmt.Sprintf("%x", e.hwid),
	})
}

func orAny(allowed []string) string {
	if len(allowed) == 0 {
		return "any"
	}
	return words(allowed)
}

// order checks that no level is above one that must not be lower: the firmware only ever raises them in this order.
func (s signed) order(t *attestation.Trail, p Product) error {
	l := s.report.TCB
	levels := map[string]TCB{}
	for _, n := range []struct {
		name string
		raw  rawTCB
	}{{"reported_tcb", l.Reported}, {"committed_tcb", l.Committed}, {"current_tcb", l.Current}, {"launch_tcb", l.Launch}} {
		tcb, ok := p.TCB(n.raw)
		if !ok {
			return fail(attestation.CodeReserved, n.name, "reserved bytes zero", "%x", n.raw)
		}
		levels[n.name] = tcb
	}
	for _, pair := range [][2]string{
		{"reported_tcb", "committed_tcb"}, {"committed_tcb", "current_tcb"}, {"launch_tcb", "current_tcb"},
	} {
		low, high := levels[pair[0]], levels[pair[1]]
		ok := true
		for i, part := range low.parts() {
			ok = ok && part.level <= high.parts()[i].level
		}
		if err := t.Check(ok, attestation.Check{
			Code: attestation.CodeTCBOrder, Field: pair[0], Expected: "not above " + pair[1] + " (" + high.String() + ")",
			Got: low.String(),
		}); err != nil {
			return err
		}
	}
	committed, current := s.report.Firmware.Committed, s.report.Firmware.Current
	return t.Check(committed.number() <= current.number(), attestation.Check{
		Code: attestation.CodeTCBOrder, Field: "committed_version",
		Expected: "not above current_version (" + current.String() + ")", Got: committed.String(),
	})
}

// certificatesFound are the certificates of evidence and collateral.
type certificatesFound struct {
	leaves []*x509.Certificate // of the kind that signed the report; those of the collateral first
	others []*x509.Certificate
}

// gather collects certificates. The host's table is tried last: its certificate may be of an older patch level.
func gather(kind SigningKey, table []byte, col attestation.Collateral) (*certificatesFound, error) {
	out := &certificatesFound{}
	leafKind := map[SigningKey]attestation.Kind{VCEK: KindVCEK, VLEK: KindVLEK}[kind]
	for _, d := range col.Documents {
		if d.Kind != leafKind && d.Kind != KindChain {
			continue
		}
		certs, err := certificates(d.Data)
		if err != nil {
			got := d.Name + " is not"
			return nil, attestation.Fail(attestation.CodeCollateralInvalid, string(d.Kind), "certificates", got, err)
		}
		if d.Kind == leafKind {
			out.leaves = append(out.leaves, certs[0])
			certs = certs[1:]
		}
		out.others = append(out.others, certs...)
	}
	entries, err := parseTable(table)
	if err != nil {
		return nil, attestation.Fail(attestation.CodeMalformed, "certificates", "a certificate table", "not", err)
	}
	var broken error
	for _, guid := range []string{map[SigningKey]string{VCEK: guidVCEK, VLEK: guidVLEK}[kind], guidASK} {
		if len(entries[guid]) == 0 {
			continue
		}
		certs, err := certificates(entries[guid])
		switch {
		case err != nil: // an entry of the host; the caller's certificates may be enough
			broken = errors.Join(broken, fmt.Errorf("entry %s of the host's table: %w", guid, err))
		case guid == guidASK:
			out.others = append(out.others, certs...)
		default:
			out.leaves = append(out.leaves, certs[0])
		}
	}
	if len(out.leaves) == 0 {
		const expected = "a certificate from the host or AMD"
		return nil, attestation.Fail(attestation.CodeCollateralMissing, kind.String(), expected, "none", broken)
	}
	return out, nil
}
