// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// Codes of signed statements on launch digests, and of the reports of Azure's confidential VMs.
const (
	CodeEndorsementIssuer Code = "endorsement-issuer"
	CodeEndorsementFeed   Code = "endorsement-feed"
	CodeEndorsementSVN    Code = "endorsement-svn"
	CodeUserData          Code = "user-data"
)

// codesAzure are the codes that only endorsements and Azure's confidential VMs have.
var codesAzure = map[Code]Explanation{
	CodeEndorsementIssuer: {
		Refused, "The endorsement of the launch digest comes from the issuer that the caller names (did:x509).",
		"compare the issuer with that of the guest's vendor; an endorsement of somebody else says nothing",
	},
	CodeEndorsementFeed: {
		Refused, "The endorsement is about the product that the caller names.",
		"use the endorsement that belongs to this kind of guest",
	},
	CodeEndorsementSVN: {
		Outdated, "The endorsed guest is at least as new as the caller demands.",
		"update the guest, or lower the minimum if its known weaknesses are acceptable",
	},
	CodeUserData: {
		Refused, "The user data in the report of an Azure VM is what the guest was asked to write there.",
		"have the guest write the value and read the report again until it is there; zeros say that nothing was written",
	},
}
