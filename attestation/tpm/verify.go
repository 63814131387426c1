// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coco-shim/coco/attestation"
)

// pcrInitData is the PCR that binds the initdata.
const pcrInitData = 8

// verification is the state of one call of Verify. Each step reads what the steps before it have proven.
type verification struct {
	evidence   attestation.Evidence
	collateral attestation.Collateral
	want       Expectations
	trail      attestation.Trail

	quote     *Quote
	key       *Key
	signature *signature
	selection Selection
	owner     string // subject of the AK's certificate
	events    []any
}

// Verify returns what the evidence proves, or the first check that does not hold as an *attestation.Failure.
func Verify(e attestation.Evidence, c attestation.Collateral, want Expectations) (*attestation.Claims, error) {
	v := &verification{evidence: e, collateral: c, want: want}
	for _, step := range []func() error{
		v.inputs, v.checkAttributes, v.checkSignature, v.checkOrigin, v.checkSelection, v.checkDigest, v.checkExpectations,
		v.checkEventLog,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return v.trail.Claim(v.claims()), nil
}

func (v *verification) inputs() error {
	if v.evidence.Type != attestation.TPM {
		return unsupported("type", string(attestation.TPM), v.evidence.Type)
	}
	if v.collateral.Now.IsZero() {
		return attestation.Fail(attestation.CodeExpectation, "time", "the time of the verification", "none", nil)
	}
	var err error
	if v.quote, err = Parse(v.evidence.Report); err != nil {
		return err
	}
	if v.key, err = ParseKey(v.evidence.Key); err != nil {
		return err
	}
	v.signature, err = v.key.parseSignature(v.evidence.Signature)
	return err
}

// checkAttributes refuses keys that sign what did not come from the TPM.
func (v *verification) checkAttributes() error {
	c := attestation.Check{Code: attestation.CodeKeyAttributes, Field: "key.attributes"}
	if v.key.Bare {
		c.Expected, c.Got = "what the TPM says of the key", "the public key alone"
		if v.want.BareKey {
			c.Expected += ", or the word of the caller"
		}
		return v.trail.Check(v.want.BareKey, c)
	}
	c.Expected = fmt.Sprintf("%#08x set and %#08x not", uint32(akAttributes), uint32(decrypt))
	c.Got = fmt.Sprintf("%#08x", v.key.Attributes)
	return v.trail.Check(v.key.Attributes&(akAttributes|decrypt) == akAttributes, c)
}

func (v *verification) checkSignature() error {
	const field, expected = "quote.signature", "one of the attestation key"
	if err := v.key.verify(v.evidence.Report, v.signature); err != nil {
		return attestation.Fail(attestation.CodeSignature, field, expected, "another one", err)
	}
	return v.trail.Check(true, attestation.Check{
		Code: attestation.CodeSignature, Field: field, Expected: expected,
		Got: "it is",
	})
}

// checkOrigin looks for a proof that the AK belongs to a TPM that the caller trusts.
func (v *verification) checkOrigin() error {
	switch {
	case v.want.KeyNames != nil:
		return v.trail.OneOf(attestation.CodeKeyOrigin, "key.name", v.want.KeyNames, v.key.Name)
	case v.want.KeyHashes != nil:
		return v.trail.OneOf(attestation.CodeKeyOrigin, "key.hash", v.want.KeyHashes, v.key.hashPublic())
	case v.want.Roots != nil:
		return v.checkCertificate()
	case v.want.Leaves(ItemKey):
		v.trail.Undecided(ItemKey)
		return nil
	}
	return attestation.Fail(attestation.CodeExpectation, string(ItemKey),
		"names of keys, a CA, or the item named as undecided", "none of them", nil)
}

// checkCertificate checks the AK's certificate against the caller's CAs. The AK's comes first.
func (v *verification) checkCertificate() error {
	const field = "key.certificate"
	certs, err := readCertificates(v.evidence.Certificates)
	if err != nil {
		return attestation.Fail(attestation.CodeKeyOrigin, field, "certificates in PEM or one in DER",
			fmt.Sprintf("%d bytes", len(v.evidence.Certificates)), err)
	}
	if !v.key.equal(certs[0].PublicKey) {
		return attestation.Fail(attestation.CodeKeyOrigin, field, "a certificate of the attestation key",
			"one of another key", nil)
	}
	pool := x509.NewCertPool()
	for _, c := range certs[1:] {
		pool.AddCert(c)
	}
	// The alternative name of a TPM's certificate is a directory name, which Go does not know; it is critical when the
	// subject is empty (TPM 2.0 EK profile 3.2.9).
	certs[0].UnhandledCriticalExtensions = slices.DeleteFunc(certs[0].UnhandledCriticalExtensions, oidAltName.Equal)
	if _, err := certs[0].Verify(x509.VerifyOptions{
		Roots: v.want.Roots, Intermediates: pool, CurrentTime: v.collateral.Now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		code := attestation.CodeKeyOrigin
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
			code = attestation.CodeCollateralExpired
			if v.collateral.Now.Before(invalid.Cert.NotBefore) {
				code = attestation.CodeCollateralEarly
			}
		}
		return attestation.Fail(code, field, "a certificate of the caller's CA", certs[0].Subject.String(), err)
	}
	v.owner = certs[0].Subject.String()
	return v.trail.Check(true, attestation.Check{
		Code: attestation.CodeKeyOrigin, Field: field, Expected: "a certificate of the caller's CA", Got: v.owner,
	})
}

var oidAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// maxChain bounds the certificates of one AK.
const maxChain = 8

func readCertificates(b []byte) ([]*x509.Certificate, error) {
	if len(b) == 0 || len(b) > maxPart {
		return nil, fmt.Errorf("1 to %d bytes are read", maxPart)
	}
	if b[0] == 0x30 {
		return x509.ParseCertificates(b)
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > maxChain {
			return nil, fmt.Errorf("more than %d certificates", maxChain)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}

// checkSelection compares what was quoted with what was asked for. One bank, exactly these PCRs: with another selection
// the same digest would stand for other registers.
func (v *verification) checkSelection() error {
	texts := make([]string, len(v.quote.Selections))
	for i, s := range v.quote.Selections {
		texts[i] = s.String()
	}
	c := attestation.Check{Code: attestation.CodePCRSelection, Field: "quote.pcr_select", Got: strings.Join(texts, "+")}
	if c.Got == "" {
		c.Got = "none"
	}
	switch {
	case v.want.Selection != nil:
		want := Selection{
			Bank: v.want.Selection.Bank,
			PCRs: slices.Compact(slices.Sorted(slices.Values(v.want.Selection.PCRs))),
		}
		if len(want.PCRs) == 0 {
			return attestation.Fail(attestation.CodeExpectation, string(ItemSelection), "at least one PCR", "none", nil)
		}
		c.Expected = want.String()
		if err := v.trail.Check(c.Got == c.Expected, c); err != nil {
			return err
		}
	case v.want.Leaves(ItemSelection):
		c.Expected = "one bank"
		if err := v.trail.Check(len(v.quote.Selections) == 1, c); err != nil {
			return err
		}
		v.trail.Undecided(ItemSelection)
	default:
		return attestation.Fail(attestation.CodeExpectation, string(ItemSelection),
			"a bank and PCRs, or the item named as undecided", "neither", nil)
	}
	v.selection = v.quote.Selections[0]
	return nil
}

// checkDigest computes the digest over the values that came with the quote. Values of PCRs that are not quoted are not
// looked at.
func (v *verification) checkDigest() error {
	h := v.signature.hash.New()
	for _, n := range v.selection.PCRs {
		value := v.evidence.PCRs[n]
		if n >= numPCRs || len(value) != v.selection.Bank.Size() {
			return attestation.Fail(attestation.CodePCRDigest, pcrName(n),
				fmt.Sprintf("a value of %d bytes", v.selection.Bank.Size()),
				fmt.Sprintf("%d bytes", len(value)), nil)
		}
		h.Write(value)
	}
	sum := h.Sum(nil)
	return v.trail.Check(bytes.Equal(sum, v.quote.PCRDigest), attestation.Check{
		Code: attestation.CodePCRDigest, Field: "quote.pcr_digest", Expected: hex.EncodeToString(sum),
		Got: v.quote.PCRDigest.String(),
	})
}

func pcrName(n int) string { return fmt.Sprintf("pcr%02d", n) }

// registers are the values that the quote covers.
func (v *verification) registers() map[string]attestation.Hex {
	r := map[string]attestation.Hex{}
	for _, n := range v.selection.PCRs {
		r[pcrName(n)] = v.evidence.PCRs[n]
	}
	return r
}

func (v *verification) checkExpectations() error {
	e := v.want.Expectations
	if err := v.trail.ReportData(v.quote.ExtraData, e); err != nil {
		return err
	}
	if err := v.checkInitData(); err != nil {
		return err
	}
	switch {
	case e.Measurements != nil:
		return attestation.Fail(attestation.CodeExpectation, string(attestation.ItemMeasurement),
			"values of PCRs, since a TPM has no launch digest",
			fmt.Sprintf("%d launch digests", len(e.Measurements)), nil)
	case len(e.Registers) > 0:
	case e.Leaves(attestation.ItemMeasurement):
		v.trail.Undecided(attestation.ItemMeasurement)
	default:
		return attestation.Fail(attestation.CodeExpectation, string(attestation.ItemMeasurement),
			"values of PCRs, or the item named as undecided", "neither", nil)
	}
	return v.trail.Registers(v.registers(), e)
}

// checkInitData compares PCR 8 with zeros that were extended once, with the digest of the initdata.
func (v *verification) checkInitData() error {
	e := v.want.Expectations
	value := v.registers()[pcrName(pcrInitData)]
	if e.InitData == nil {
		return v.trail.InitData(pcrName(pcrInitData), value, e)
	}
	if n := len(e.InitData); n < sha256.Size || n > 64 {
		return attestation.Fail(attestation.CodeExpectation, pcrName(pcrInitData), "a digest of 32 to 64 bytes",
			fmt.Sprintf("%d bytes", n), nil)
	}
	h := v.selection.Bank.New()
	fitted := make([]byte, h.Size())
	copy(fitted, e.InitData)
	h.Write(make([]byte, h.Size()))
	h.Write(fitted)
	sum := h.Sum(nil)
	got := value.String()
	if got == "" {
		got = "not quoted"
	}
	return v.trail.Check(bytes.Equal(sum, value), attestation.Check{
		Code: attestation.CodeInitData, Field: pcrName(pcrInitData),
		Expected: hex.EncodeToString(sum) + ", zeros extended with the initdata's digest", Got: got,
	})
}

func (v *verification) claims() attestation.Claims {
	q := v.quote
	registers := v.registers()
	pcrs := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(registers)) {
		pcrs[name] = registers[name].String()
	}
	details := map[string]any{
		"tpm": pcrs, "report_data": q.ExtraData.String(), "bank": bankName(v.selection.Bank), "key_name": v.key.Name.String(),
		"quote": map[string]any{
			"qualified_signer": q.Signer.String(), "clock": float64(q.Clock), "reset_count": float64(q.ResetCount),
			"restart_count": float64(q.RestartCount), "safe": q.Safe,
			"firmware_version": fmt.Sprintf("%016x", q.FirmwareVersion),
		},
	}
	if v.owner != "" {
		details["key_certificate"] = v.owner
	}
	if v.events != nil {
		details["uefi_event_logs"] = v.events
	}
	c := attestation.Claims{Type: attestation.TPM, Registers: registers, ReportData: q.ExtraData, Details: details}
	if value, ok := registers[pcrName(pcrInitData)]; ok {
		c.InitData = value
		details["init_data"] = value.String()
	}
	return c
}
