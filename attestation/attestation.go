// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package attestation holds the types that all verifiers of evidence share.
//
// A guest in a TEE proves what it is by evidence: a structure that its processor or TPM has signed. A verifier (package
// snp, tdx or tpm below this one) is a pure function. Its input is the evidence, the vendor's collateral with the time
// at which it is judged, and the expectations of the caller. Its result is claims, or the first check that failed as a
// *Failure: code, field, expected and got. A verifier reads no file, no network and no clock, so that the same input
// gives the same result for ever; package collateral fetches what a verifier needs.
//
// The life of one verification: the caller asks the verifier's package which collateral the evidence needs (Request),
// gets those documents, and calls Verify. Each check that holds is recorded in the claims with the values that were
// compared. A check that no expectation asks for is not passed silently: the caller gives a value, or names the item in
// Expectations.Undecided, and the claims repeat it there. The zero Expectations accept no evidence.
//
// The sender of evidence wants a secret and may lie. A verifier bounds what it reads, and returns an error for bytes
// that it cannot read.
package attestation

import "time"

// Type names a kind of evidence, with the names that CoCo's Trustee gives its TEEs.
type Type string

// Types of evidence.
const (
	SNP Type = "snp"
	TDX Type = "tdx"
	TPM Type = "tpm"
)

// Evidence is what a guest handed over. Nothing in it is trusted before Verify.
type Evidence struct {
	Type Type
	// Report is the signed structure: the attestation report of SNP, the quote of TDX, the TPMS_ATTEST of a TPM.
	Report []byte
	// Signature is a TPM's signature of Report. Report of SNP and TDX contains its own.
	Signature []byte
	// Key is the public attestation key of a TPM.
	Key []byte
	// PCRs are the values that a TPM's quote covers, by index.
	PCRs map[int][]byte
	// Certificates is what the host gave with Report: the certificate table of SNP, certificates of a TPM's keys.
	Certificates []byte
	// EventLog is the log that explains registers: CCEL of TDX, the TCG log of a TPM.
	EventLog []byte
}

// Kind names what a document of a vendor is. Each verifier's package declares its own kinds.
type Kind string

// Request names one document that a verifier needs.
type Request struct {
	Kind Kind
	// Name is the document's path in a directory of collateral. It holds no "..". The same name means the same document.
	Name string
	// URL is where the vendor serves the document; empty if the vendor does not.
	URL string
	// ChainHeader is the header of the HTTP response that carries the certificates of the document's signer, as Intel's
	// service sends them. Empty if there is none.
	ChainHeader string
}

// Document is one document of a vendor. The vendor has signed it, so it may come from anywhere.
type Document struct {
	Kind Kind
	// Name is where the document is from, for messages.
	Name string
	Data []byte
	// Chain is the value of Request.ChainHeader.
	Chain []byte
}

// Collateral is what vendors publish on their chips, and the time at which it is judged.
type Collateral struct {
	Documents []Document
	// Now is the time of the verification. The zero time is refused.
	Now time.Time
	// AllowExpired accepts documents whose validity has ended before Now. It never accepts one that is not valid yet.
	AllowExpired bool
}

// All returns the documents of a kind, in the order in which they were given.
func (c Collateral) All(k Kind) []Document {
	var out []Document
	for _, d := range c.Documents {
		if d.Kind == k {
			out = append(out, d)
		}
	}
	return out
}

// Claims is what verified evidence says.
type Claims struct {
	Type Type `json:"type"`
	// Measurement is the launch digest: MEASUREMENT of SNP, MRTD of TDX. A TPM has none.
	Measurement Hex `json:"measurement,omitempty"`
	// Registers hold later measurements, by name: rtmr0 to rtmr3, pcr00 to pcr23.
	Registers map[string]Hex `json:"registers,omitempty"`
	// InitData is the field that binds the initdata: HOSTDATA, MRCONFIGID, PCR 8.
	InitData Hex `json:"init_data,omitempty"`
	// ReportData is what the guest asked to have signed: REPORTDATA, the extraData of a TPM's quote.
	ReportData Hex `json:"report_data"`
	// Details are all claims, by the names that Trustee gives them: strings, float64, booleans, maps and lists of those.
	Details map[string]any `json:"details"`
	// Checks are the checks that hold, in the order in which they were made.
	Checks []Check `json:"checks"`
	// Undecided are the items that were not compared because the caller decides on them itself.
	Undecided []Item `json:"undecided,omitempty"`
}

// Check is one thing that was compared.
type Check struct {
	Code Code `json:"code"`
	// Field is what was compared, by the name in the vendor's specification and in lower case: "policy.debug".
	Field string `json:"field"`
	// Expected is the condition, such as "0" or "at least 24".
	Expected string `json:"expected"`
	Got      string `json:"got"`
}
