// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cose verifies endorsements of launch digests: COSE_Sign1 messages (RFC 9052) in which the vendor of a guest
// says that a digest is a version of its product, as Microsoft does for the guests of ACI and AKS (UVM endorsements).
//
// A relying party that trusts the vendor needs no new list of digests for each update. The caller names the issuer (a
// did:x509), the feed (the product) and the lowest version. Verify checks the signature by the first certificate of the
// message, that the chain leads to the certificate whose fingerprint is in the issuer's name and has the properties
// that the name demands, and then what is said. It is a pure function: no file, network or clock.
//
// Certificates of signers live for months and endorsements for years. So the chain is judged at the signing time, which
// the message tells. A thief of an old signing key can lie about it; the lowest version is what limits such a lie. A
// time stamp outside of the signature is not looked at.
package cose

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/veraison/go-cose"

	"github.com/coco-shim/coco/attestation"
)

// MaxSize bounds an endorsement.
const MaxSize = 64 << 10

const (
	maxChain    = 8
	maxLaunches = 256
)

// Names in the protected header that are text.
const (
	headerIssuer = "iss"
	headerFeed   = "feed"
	headerTime   = "signingtime"
)

// algorithms are those that are accepted. Microsoft signs with PS384.
var algorithms = []cose.Algorithm{
	cose.AlgorithmPS256, cose.AlgorithmPS384, cose.AlgorithmPS512,
	cose.AlgorithmES256, cose.AlgorithmES384, cose.AlgorithmES512,
}

// Expectations are the caller's demands. All fields are needed; the zero value accepts nothing.
type Expectations struct {
	// Issuer is a did:x509, compared as text.
	Issuer string
	// Feed is the product, such as ContainerPlat-AMD-UVM.
	Feed string
	// MinSVN is the lowest version. It is a pointer so that 0 is a choice.
	MinSVN *uint64
}

// Endorsement is a verified endorsement.
type Endorsement struct {
	Issuer string
	Feed   string
	SVN    uint64
	// Launches are the endorsed launch digests.
	Launches []Launch
	// Signed is the signing time, by which the certificates were judged.
	Signed time.Time
	Checks []attestation.Check
}

// message is a decoded message. Nothing in it is verified.
type message struct {
	sign1        cose.Sign1Message
	alg          cose.Algorithm
	chain        []*x509.Certificate
	issuer, feed string
	signed       time.Time
}

func malformed(field, expected, got string, err error) error {
	return attestation.Fail(attestation.CodeMalformed, "endorsement."+field, expected, got, err)
}

func parse(b []byte) (m message, err error) {
	if len(b) > MaxSize {
		return m, malformed("size", fmt.Sprintf("at most %d bytes", MaxSize), fmt.Sprint(len(b)), nil)
	}
	if err := m.sign1.UnmarshalCBOR(b); err != nil {
		return m, malformed("message", "COSE_Sign1", "something else", err)
	}
	h := m.sign1.Headers.Protected
	if m.alg, err = h.Algorithm(); err != nil || !slices.Contains(algorithms, m.alg) {
		return m, attestation.Fail(attestation.CodeUnsupported, "endorsement.alg", "PS256 to PS512 or ES256 to ES512",
			fmt.Sprint(h[cose.HeaderLabelAlgorithm]), err)
	}
	if crit, err := h.Critical(); err != nil || len(crit) > 0 {
		return m, attestation.Fail(attestation.CodeUnsupported, "endorsement.crit", "no critical header", "some", err)
	}
	var okIssuer, okFeed bool
	m.issuer, okIssuer = h[headerIssuer].(string)
	m.feed, okFeed = h[headerFeed].(string)
	if !okIssuer || !okFeed {
		return m, malformed("header", "iss and feed", "one is missing, or no text", nil)
	}
	if m.chain, err = chainOf(h[cose.HeaderLabelX5Chain]); err != nil {
		return m, malformed("x5chain", "certificates, the signer's first", "something else", err)
	}
	if len(m.sign1.Payload) == 0 {
		return m, malformed("payload", "JSON", "none", nil)
	}
	m.signed, err = timeOf(h[headerTime], m.chain)
	return m, err
}

// chainOf reads certificates: a list, or one alone.
func chainOf(v any) ([]*x509.Certificate, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) > maxChain {
		return nil, fmt.Errorf("more than %d certificates", maxChain)
	}
	var out []*x509.Certificate
	for _, v := range list {
		der, ok := v.([]byte)
		if !ok {
			return nil, errors.New("a certificate is not a byte string")
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// timeOf reads the signing time. Without one it is the time at which the youngest certificate began to be valid.
func timeOf(v any, chain []*x509.Certificate) (time.Time, error) {
	switch v := v.(type) {
	case time.Time:
		return v, nil
	case int64:
		return time.Unix(v, 0), nil
	case nil:
		var t time.Time
		for _, c := range chain {
			if c.NotBefore.After(t) {
				t = c.NotBefore
			}
		}
		return t, nil
	}
	return time.Time{}, malformed(headerTime, "a time", fmt.Sprintf("a %T", v), nil)
}

// Verify checks an endorsement. It returns its content, or the first check that failed as an *attestation.Failure.
func Verify(b []byte, want Expectations) (*Endorsement, error) {
	if want.Issuer == "" || want.Feed == "" || want.MinSVN == nil {
		return nil, attestation.Fail(attestation.CodeExpectation, "endorsement", "issuer, feed and lowest version",
			"not all of them", nil)
	}
	m, err := parse(b)
	if err != nil {
		return nil, err
	}
	var t attestation.Trail
	if err := m.genuine(&t, want.Issuer); err != nil {
		return nil, err
	}
	e := Endorsement{Issuer: m.issuer, Feed: m.feed, Signed: m.signed}
	if err := e.payload(m.sign1.Payload); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		ok bool
		attestation.Check
	}{
		{m.feed == want.Feed, attestation.Check{
			Code: attestation.CodeEndorsementFeed, Field: "endorsement.feed", Expected: want.Feed, Got: clip(m.feed),
		}},
		{e.SVN >= *want.MinSVN, attestation.Check{
			Code: attestation.CodeEndorsementSVN, Field: "endorsement.svn", Expected: fmt.Sprintf("at least %d", *want.MinSVN),
			Got: fmt.Sprint(e.SVN),
		}},
	} {
		if err := t.Check(c.ok, c.Check); err != nil {
			return nil, err
		}
	}
	e.Checks = t.Claim(attestation.Claims{}).Checks
	return &e, nil
}

// genuine checks issuer, chain and signature, in this order: a chain is built for one issuer.
func (m message) genuine(t *attestation.Trail, issuer string) error {
	err := t.Check(m.issuer == issuer, attestation.Check{
		Code: attestation.CodeEndorsementIssuer, Field: "endorsement.iss", Expected: issuer, Got: clip(m.issuer),
	})
	if err != nil {
		return err
	}
	d, err := parseDID(issuer)
	if err != nil {
		return attestation.Fail(attestation.CodeExpectation, "endorsement.iss", "a did:x509 of version 0", clip(issuer), err)
	}
	at := m.signed.UTC().Format(time.RFC3339)
	if err := d.resolve(m.chain, m.signed); err != nil {
		return attestation.Fail(attestation.CodeChain, "endorsement.x5chain", "a chain of the issuer, valid at "+at,
			"another one", err)
	}
	if err := t.Check(true, attestation.Check{
		Code: attestation.CodeChain, Field: "endorsement.x5chain",
		Expected: "a chain of the issuer, valid at the signing time",
		Got:      fmt.Sprintf("%d certificates at %s", len(m.chain), at),
	}); err != nil {
		return err
	}
	v, err := cose.NewVerifier(m.alg, m.chain[0].PublicKey)
	if err == nil {
		err = m.sign1.Verify(nil, v)
	}
	if err != nil {
		return attestation.Fail(attestation.CodeSignature, "endorsement.signature", "of the first certificate's key",
			"none that holds", err)
	}
	return t.Check(true, attestation.Check{
		Code: attestation.CodeSignature, Field: "endorsement.signature", Expected: "of the first certificate's key",
		Got: m.alg.String(),
	})
}

var (
	digits = regexp.MustCompile(`^[0-9a-fA-F]{96}$`)
	number = regexp.MustCompile(`^(0|[1-9][0-9]{0,18})$`)
)

// payload reads the endorsed digests. Microsoft endorses one digest of SNP, and writes the version as a string of
// decimal digits; it is the endorsement's, and not GUEST_SVN of the report. Ours has a number and a list.
func (e *Endorsement) payload(b []byte) error {
	var p struct {
		launches
		Number      json.RawMessage `json:"x-ms-sevsnpvm-guestsvn"`
		Measurement string          `json:"x-ms-sevsnpvm-launchmeasurement"`
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return malformed("payload", "JSON", "something else", err)
	}
	if (p.SVN != nil) == (p.Number != nil) {
		return malformed("payload", "either svn or x-ms-sevsnpvm-guestsvn", "both or neither", nil)
	}
	if p.SVN != nil {
		e.SVN, e.Launches = *p.SVN, p.Launches
	} else {
		text := string(bytes.Trim(p.Number, `"`))
		if !number.MatchString(text) {
			return malformed("payload", "x-ms-sevsnpvm-guestsvn, a decimal number", clip(text), nil)
		}
		var err error
		if e.SVN, err = strconv.ParseUint(text, 10, 64); err != nil {
			return malformed("payload", "x-ms-sevsnpvm-guestsvn, a decimal number", clip(text), err)
		}
		e.Launches = []Launch{{Platform: "snp", Digest: p.Measurement}}
	}
	if len(e.Launches) == 0 || len(e.Launches) > maxLaunches {
		return malformed("payload", fmt.Sprintf("1 to %d launches", maxLaunches), fmt.Sprint(len(e.Launches)), nil)
	}
	for _, l := range e.Launches {
		if !digits.MatchString(l.Digest) || l.Platform != "snp" && l.Platform != "tdx" {
			return malformed("payload", "a digest of 96 digits, of snp or tdx", clip(l.Platform+" "+l.Digest), nil)
		}
	}
	return nil
}

// Measurements returns the endorsed digests of a platform.
func (e *Endorsement) Measurements(platform string) [][]byte {
	out := [][]byte{} // not nil: no digest is allowed
	for _, l := range e.Launches {
		if b, err := hex.DecodeString(l.Digest); err == nil && l.Platform == platform {
			out = append(out, b)
		}
	}
	return out
}

func clip(s string) string {
	const most = 200
	if s == "" {
		return "none"
	}
	return fmt.Sprintf("%."+strconv.Itoa(most)+"s", s)
}
