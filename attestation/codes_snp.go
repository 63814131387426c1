// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// Codes that only evidence of SNP has.
const (
	CodeReserved      Code = "reserved"
	CodeUnsigned      Code = "unsigned"
	CodeProduct       Code = "product"
	CodeKeyKind       Code = "key-kind"
	CodeChip          Code = "chip"
	CodeChipMasked    Code = "chip-masked"
	CodeTCBOrder      Code = "tcb-order"
	CodePrivilege     Code = "privilege"
	CodeGuestPolicy   Code = "guest-policy"
	CodePlatform      Code = "platform"
	CodeIDBlock       Code = "id-block"
	CodeCloudProvider Code = "cloud-provider"
)

// codesSNP are the codes that only evidence of SNP has.
var codesSNP = map[Code]Explanation{
	CodeReserved: {
		Unsupported, "Bits and bytes that no known version defines are zero.",
		"use a version of coco that knows this firmware",
	},
	CodeUnsigned: {
		Forged, "The processor has signed the report.",
		"the host told the firmware not to sign: nothing in this report is proven",
	},
	CodeProduct: {
		Refused, "The processor belongs to a line that is allowed, and its certificate to the same line.",
		"run the guest on one of the allowed lines of processors",
	},
	CodeKeyKind: {
		Refused, "The kind of key that signed the report is allowed: the chip's (VCEK) or a provider's (VLEK).",
		"allow this kind of key, or run the guest where the other one signs",
	},
	CodeChip: {
		Refused, "The chip is one of those that are allowed.",
		"add the chip to the list, or run the guest on a chip of the list",
	},
	CodeChipMasked: {
		Forged, "A report that hides its chip is signed by a provider's key (VLEK).",
		"the chip's own key cannot vouch for a hidden chip: trust nothing in this evidence",
	},
	CodeTCBOrder: {
		Forged, "The reported patch level is not above the committed one, nor that above the current one.",
		"the platform contradicts itself: do not use it",
	},
	CodePrivilege: {
		Refused, "The report comes from a privilege level (VMPL) that is allowed.",
		"ask for the report at VMPL 0, or allow the level that the paravisor leaves to the guest",
	},
	CodeGuestPolicy: {
		Refused, "The guest's policy has the bits that are demanded and none that are forbidden.",
		"launch the guest with the policy that is expected",
	},
	CodePlatform: {
		Refused, "The platform's state has the bits that are demanded and none that are forbidden.",
		"change the setting in the machine's firmware, or do not demand it",
	},
	CodeIDBlock: {
		Refused, "The guest was launched with an ID block of an allowed key, family, image and version.",
		"launch the guest with the owner's ID block",
	},
	CodeCloudProvider: {
		Refused, "The provider in the VLEK's certificate is one of those that are allowed.",
		"allow this provider, or run the guest elsewhere",
	},
}
