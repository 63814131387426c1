// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto/x509"

	"github.com/coco-shim/coco/attestation"
)

// Items on which the caller of this package must have an opinion, beside those of package attestation. A TPM has no
// launch
// digest: values of PCRs in Expectations.Registers ("pcr04") decide attestation.ItemMeasurement.
const (
	ItemKey       attestation.Item = "key"           // the TPM that made the quote
	ItemSelection attestation.Item = "pcr-selection" // the PCRs that the quote covers
)

// Expectations are what the caller demands of a quote. The zero value accepts nothing: see attestation.Expectations.
// InitData is the digest that the guest has extended PCR 8 with, once and before anything else.
type Expectations struct {
	attestation.Expectations
	// Selection is what the guest was asked to quote: exactly this bank and these PCRs, in any order.
	Selection *Selection
	// KeyNames are the names of AKs that the caller has bound to a TPM, such as by activating a credential.
	KeyNames [][]byte
	// KeyHashes are the SHA-256 hashes of such AKs' public keys (SubjectPublicKeyInfo in DER), by which Trustee knows
	// them.
	KeyHashes [][]byte
	// Roots are CAs whose certificate on the AK, in Evidence.Certificates, proves its TPM.
	Roots *x509.CertPool
	// BareKey accepts an AK of which only the public key is known: the caller knows from elsewhere that it is restricted
	// to
	// signing what the TPM has made.
	BareKey bool
	// NeedEventLog refuses evidence without an event log.
	NeedEventLog bool
}
