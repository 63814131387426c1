// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// Codes of TPMs.
const (
	CodeTPMQuote      Code = "tpm-quote"
	CodeKeyAttributes Code = "key-attributes"
	CodeKeyOrigin     Code = "key-origin"
	CodePCRSelection  Code = "pcr-selection"
	CodePCRDigest     Code = "pcr-digest"
)

// codesTPM are the codes that only evidence of a TPM has.
var codesTPM = map[Code]Explanation{
	CodeTPMQuote: {
		Forged, "The signed structure is a quote that a TPM has made.",
		"ask for a quote; the key has signed something else",
	},
	CodeKeyAttributes: {
		Forged, "The attestation key was made in the TPM, cannot leave it, and signs only what the TPM made.",
		"make the key as a restricted signing key; another kind of key signs whatever the guest likes",
	},
	CodeKeyOrigin: {
		Forged, "The attestation key belongs to a TPM that the caller trusts.",
		"give the CA of the TPM's keys, or the name of the key",
	},
	CodePCRSelection: {
		Refused, "The quote covers exactly the PCRs that were asked for.",
		"ask the guest for a quote of the bank and the PCRs that are expected",
	},
	CodePCRDigest: {
		Forged, "The PCR values that came with the quote are the quoted ones.",
		"get the evidence again; a PCR may have been extended between reading and quoting",
	},
}
