// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package evidence verifies what guests send to a key broker. It chooses the verifier by the type of the TEE, gets the
// vendor's documents, and demands that the evidence was made for the session and for the initdata that came with it.
// Launch digests, patch levels and PCRs are left to the broker's policy.
//
// Evidence of type sample proves nothing. It is taken only with AllowInsecure.
package evidence

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tpm"
)

// Sample is the type of evidence that proves nothing.
const Sample = "sample"

// sampleDigest is the launch digest that Trustee's verifier claims of each sample.
const sampleDigest = "abcde"

// Verifiers verify evidence. The zero value accepts none.
type Verifiers struct {
	SNP snp.Verifier
	// TDXRoot is the key of Intel's root.
	TDXRoot *ecdsa.PublicKey
	// TPMRoots are the CAs whose certificate on an attestation key proves its TPM. Without one no TPM is accepted.
	TPMRoots *x509.CertPool
	// TPMSelection are the PCRs that a quote must cover.
	TPMSelection tpm.Selection
	// Collateral gets the vendors' documents.
	Collateral *collateral.Store
	// AllowExpired accepts documents of the vendors whose validity has ended.
	AllowExpired bool
	// AllowInsecure accepts evidence of type sample, which anyone can make.
	AllowInsecure bool
	Now           func() time.Time
}

// Check says why evidence of a type is not accepted at all.
func (v *Verifiers) Check(tee string) error {
	switch attestation.Type(tee) {
	case attestation.SNP, attestation.TDX:
		return nil
	case attestation.TPM:
		if v.TPMRoots == nil {
			return errors.New("evidence of tpm needs a CA of TPMs (--tpm-ca)")
		}
		return nil
	case Sample:
		if !v.AllowInsecure {
			return errors.New("evidence of sample proves nothing and is not accepted (--allow-insecure)")
		}
		return nil
	}
	return fmt.Errorf("no verifier for TEE %.40q: known are snp, tdx and tpm", tee)
}

// Notice says what a type of evidence does not prove; empty for TEEs.
func Notice(tee string) string {
	switch tee {
	case Sample:
		return "insecure: sample evidence proves nothing; anyone could have made it"
	case string(attestation.TPM):
		return "integrity only: a TPM of the node vouches for what was booted; the node can read the guest's memory"
	}
	return ""
}

// Verify verifies evidence of a type. The digest is what the TEE was asked to sign; initdata is the digest of the
// document that came with the evidence, or nil. A nil digest leaves freshness open, for evidence in files.
func (v *Verifiers) Verify(
	ctx context.Context, tee string, text json.RawMessage, digest, initdata []byte,
) (*attestation.Claims, error) {
	if err := v.Check(tee); err != nil {
		return nil, attestation.Fail(attestation.CodeUnsupported, "tee", "a type that is accepted", tee, err)
	}
	want := attestation.Expectations{
		ReportData: digest, InitData: initdata, Undecided: []attestation.Item{attestation.ItemMeasurement},
	}
	if digest == nil {
		want.Undecided = append(want.Undecided, attestation.ItemReportData)
	}
	if initdata == nil {
		want.Undecided = append(want.Undecided, attestation.ItemInitData)
	}
	switch attestation.Type(tee) {
	case attestation.SNP:
		return v.snp(ctx, text, want)
	case attestation.TDX:
		return v.tdx(ctx, text, want)
	case attestation.TPM:
		return v.tpm(text, want)
	}
	return sample(text, want)
}

func (v *Verifiers) snp(
	ctx context.Context, text json.RawMessage, want attestation.Expectations,
) (*attestation.Claims, error) {
	ev, err := snp.ParseEvidence(text)
	if err != nil {
		return nil, err
	}
	requests, err := snp.Requests(ev)
	if err != nil {
		return nil, err
	}
	col, err := v.documents(ctx, requests, snp.KindVCEK)
	if err != nil {
		return nil, err
	}
	want.Undecided = append(want.Undecided, snp.ItemTCB) // the policy decides on the claims
	return v.SNP.Verify(ev, col, snp.Expectations{Expectations: want})
}

func (v *Verifiers) tdx(
	ctx context.Context, text json.RawMessage, want attestation.Expectations,
) (*attestation.Claims, error) {
	ev, err := tdx.ParseEvidence(text)
	if err != nil {
		return nil, err
	}
	requests, err := tdx.Requests(ev)
	if err != nil {
		return nil, err
	}
	col, err := v.documents(ctx, requests, "")
	if err != nil {
		return nil, err
	}
	return tdx.Verify(ev, col, tdx.Expectations{Expectations: want, Root: v.TDXRoot})
}

// cutDigest is how much of the digest CoCo's attester has a TPM sign. Ours has all of it signed.
const cutDigest = 32

// tpm demands the CA's certificate, so that the key's origin is known.
func (v *Verifiers) tpm(text json.RawMessage, want attestation.Expectations) (*attestation.Claims, error) {
	ev, err := tpm.ParseEvidence(text)
	if err != nil {
		return nil, err
	}
	if q, err := tpm.Parse(ev.Report); err == nil && len(q.ExtraData) == cutDigest && len(want.ReportData) > cutDigest {
		want.ReportData = want.ReportData[:cutDigest]
	}
	return tpm.Verify(ev, attestation.Collateral{Now: v.Now()}, tpm.Expectations{
		Expectations: want, Selection: &v.TPMSelection, Roots: v.TPMRoots,
	})
}

// documents gets what the evidence needs. Of a kind of which one answer suffices, the first is taken. A document that
// is absent is left out: the verifier names what it misses.
func (v *Verifiers) documents(
	ctx context.Context, requests []attestation.Request, one attestation.Kind,
) (attestation.Collateral, error) {
	col := attestation.Collateral{Now: v.Now(), AllowExpired: v.AllowExpired}
	have := false
	for _, r := range requests {
		if r.Kind == one && have {
			continue
		}
		d, err := v.Collateral.Get(ctx, r)
		if errors.Is(err, collateral.ErrAbsent) {
			continue
		}
		if err != nil {
			return col, attestation.Fail(attestation.CodeCollateralMissing, string(r.Kind), "a document of the vendor",
				"none", err)
		}
		have = have || r.Kind == one
		col.Documents = append(col.Documents, d)
	}
	return col, nil
}

// sample reads evidence that proves nothing. Its claims are those of Trustee.
func sample(text json.RawMessage, want attestation.Expectations) (*attestation.Claims, error) {
	var e struct {
		SVN        string `json:"svn"`
		ReportData string `json:"report_data"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, attestation.Fail(attestation.CodeMalformed, "evidence", "an object with svn and report_data", "not", err)
	}
	raw, err := base64.StdEncoding.DecodeString(e.ReportData)
	if err != nil {
		return nil, attestation.Fail(attestation.CodeMalformed, "report_data", "base64", "not", err)
	}
	var t attestation.Trail
	if err := t.ReportData(raw, want); err != nil {
		return nil, err
	}
	c := attestation.Claims{
		Type: Sample, ReportData: raw, InitData: want.InitData,
		Details: map[string]any{
			"svn": e.SVN, "launch_digest": sampleDigest, "debug": false, "insecure": true,
			"platform_version": map[string]any{"major": 1.0, "minor": 4.0},
			"report_data":      hex.EncodeToString(raw),
		},
	}
	return t.Claim(c), nil
}
