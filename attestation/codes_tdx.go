// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// Codes of TDX.
const (
	CodeQEIdentity   Code = "qe-identity"
	CodeTDXModule    Code = "tdx-module"
	CodeTCBStatus    Code = "tcb-status"
	CodeAdvisory     Code = "advisory"
	CodeTDAttributes Code = "td-attributes"
	CodeTDField      Code = "td-field"
)

// codesTDX are the codes that only evidence of TDX has.
var codesTDX = map[Code]Explanation{
	CodeQEIdentity: {
		Forged, "The enclave that made the quote is Intel's quoting enclave.",
		"trust nothing in this quote: another enclave made it",
	},
	CodeTDXModule: {
		Forged, "The TDX module is one that Intel has signed.",
		"fetch the TCB info again if the module is newer than it; else do not use the platform",
	},
	CodeTCBStatus: {
		Outdated, "Firmware, microcode, TDX module and quoting enclave reach a level that the caller accepts.",
		"update firmware, microcode and TDX module of the host, or accept the status explicitly after reading the advisories",
	},
	CodeAdvisory: {
		Outdated, "No advisory that the caller refuses applies to the platform.",
		"update the host as the advisory of Intel says",
	},
	CodeTDAttributes: {
		Refused, "Attributes and extended features of the TD are those that the caller demands.",
		"compare the TD's arguments with those of a good launch",
	},
	CodeTDField: {
		Refused, "Each further field that the caller names has one of the allowed values.",
		"compare the TD's arguments and TDX module with those of a good launch",
	},
}
