// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tpm"
)

// flagsOf are the flags that mean something for one type of evidence only. Given with another one they are refused: the
// caller would take for checked what is not.
var flagsOf = map[attestation.Type][]string{
	attestation.SNP: {
		"min-tcb", "vmpl", "product", "endorsement", "endorsement-issuer", "endorsement-feed", "endorsement-min-svn",
		"allow-no-user-data",
	},
	attestation.TDX: {"tcb-status", "refuse-advisory", "min-evaluation"},
	attestation.TPM: {"pcr-selection", "pcr", "ak-ca", "ak-hash", "bare-key"},
}

// checkFlags refuses flags of other types of evidence.
func checkFlags(f *pflag.FlagSet, of attestation.Type) error {
	for _, t := range []attestation.Type{attestation.SNP, attestation.TDX, attestation.TPM} {
		for _, name := range flagsOf[t] {
			if t != of && f.Changed(name) {
				return fmt.Errorf("--%s is for evidence of %s; this is evidence of %s", name, t, of)
			}
		}
	}
	if of == attestation.SNP && f.Changed("event-log") {
		return fmt.Errorf("--event-log is for evidence of tdx and tpm; an SNP guest has no registers")
	}
	if of == attestation.TPM && (f.Changed("allow-debug") || f.Changed("allow-migration")) {
		return fmt.Errorf("--allow-debug and --allow-migration mean nothing for evidence of tpm")
	}
	return nil
}

// parse tells of which type evidence is, and reads it.
func parse(b []byte) (attestation.Evidence, error) {
	raw := b
	if d, err := hex.DecodeString(string(bytes.TrimSpace(b))); err == nil {
		raw = d
	}
	if isQuote(raw) {
		return parseTDX(raw)
	}
	var members struct {
		Quote json.RawMessage `json:"quote"`
		TPM   json.RawMessage `json:"tpm_quote"`
	}
	switch err := json.Unmarshal(b, &members); {
	case err == nil && members.TPM != nil:
		return tpm.ParseEvidence(b)
	case err == nil && members.Quote != nil:
		return parseTDX(b)
	}
	return snp.ParseEvidence(b)
}

// requestsFor returns the documents that the evidence needs. A TPM's quote needs none.
func requestsFor(ev attestation.Evidence) ([]attestation.Request, error) {
	switch ev.Type {
	case attestation.TDX:
		return tdx.Requests(ev)
	case attestation.TPM:
		return nil, nil
	}
	return snp.Requests(ev)
}

// judge verifies evidence with the expectations of its type.
func (o *options) judge(ev attestation.Evidence, col attestation.Collateral) (*attestation.Claims, error) {
	switch ev.Type {
	case attestation.TDX:
		want, err := o.tdxExpectations()
		if err != nil {
			return nil, err
		}
		return tdx.Verify(ev, col, want)
	case attestation.TPM:
		want, err := o.tpmExpectations()
		if err != nil {
			return nil, err
		}
		return tpm.Verify(ev, col, want)
	}
	return o.judgeSNP(ev, col)
}

// intelKind tells Intel's documents by their members and issuers. Others have no kind here.
func intelKind(b []byte) attestation.Kind {
	var members map[string]json.RawMessage
	if json.Unmarshal(b, &members) == nil {
		switch {
		case members["tcbInfo"] != nil:
			return tdx.KindTCBInfo
		case members["enclaveIdentity"] != nil:
			return tdx.KindQEIdentity
		}
		return ""
	}
	der := b
	if block, _ := pem.Decode(b); block != nil {
		der = block.Bytes
	}
	if list, err := x509.ParseRevocationList(der); err == nil {
		switch list.Issuer.CommonName {
		case "Intel SGX Root CA":
			return tdx.KindRootCRL
		case "Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA":
			return tdx.KindPCKCRL
		}
		return ""
	}
	if c, err := x509.ParseCertificate(der); err == nil && c.Subject.CommonName == "Intel SGX TCB Signing" {
		return tdx.KindSigningChain
	}
	return ""
}
