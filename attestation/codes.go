// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// tables are the codes of all verifiers and those that one platform adds. A code stands in one table.
var tables = []map[Code]Explanation{common, codesSNP, codesTDX, codesTPM, codesAzure}

// Codes that every verifier uses.
const (
	CodeMalformed         Code = "malformed"
	CodeUnsupported       Code = "unsupported"
	CodeSignature         Code = "signature"
	CodeChain             Code = "chain"
	CodeCertificate       Code = "certificate"
	CodeRevoked           Code = "revoked"
	CodeCollateralMissing Code = "collateral-missing"
	CodeCollateralExpired Code = "collateral-expired"
	CodeCollateralEarly   Code = "collateral-early"
	CodeCollateralInvalid Code = "collateral-invalid"
	CodeExpectation       Code = "expectation"
	CodeReportData        Code = "report-data"
	CodeInitData          Code = "init-data"
	CodeMeasurement       Code = "measurement"
	CodeRegister          Code = "register"
	CodeEventLog          Code = "event-log"
	CodeDebug             Code = "debug"
	CodeMigration         Code = "migration"
	CodeOutdated          Code = "outdated"
)

var common = map[Code]Explanation{
	CodeMalformed: {
		Malformed, "The bytes are a structure of the evidence's type, and fields that must be zero are.",
		"get the evidence again; the host or the network may have changed it",
	},
	CodeUnsupported: {
		Unsupported, "Version, product and algorithms are known.",
		"use a version of coco that knows this platform",
	},
	CodeSignature: {
		Forged, "The signature of the evidence is one of its key.",
		"trust nothing in this evidence: it was changed or made up",
	},
	CodeChain: {
		Forged, "The certificates lead from the key to the vendor's root.",
		"give the vendor's intermediate certificates; a chain to another root proves nothing",
	},
	CodeCertificate: {
		Forged, "What the key's certificate says of chip and patch level is what the evidence says.",
		"fetch the certificate for this chip and this patch level",
	},
	CodeRevoked: {
		Forged, "No certificate of the chain is on the vendor's list of revoked ones.",
		"the vendor no longer vouches for this key: do not use the platform",
	},
	CodeCollateralMissing: {
		Unproven, "The documents of the vendor that the checks need are there.",
		"give the named document as a file, or allow fetching it",
	},
	CodeCollateralExpired: {
		Unproven, "The documents of the vendor are valid at the time of the verification.",
		"fetch the document again, or accept expired collateral explicitly",
	},
	CodeCollateralEarly: {
		Unproven, "No document of the vendor is from after the time of the verification.",
		"correct the clock, or the time that was given",
	},
	CodeCollateralInvalid: {
		Unproven, "The documents of the vendor can be read and are signed by the vendor.",
		"fetch the document again from the vendor",
	},
	CodeExpectation: {
		Misused, "The caller gave a usable value for each item, or decides on it itself.",
		"give the value to compare with, or say that the item is not compared",
	},
	CodeReportData: {
		Refused, "The evidence was made for this request.",
		"ask the guest for new evidence with this nonce; this one answers another request",
	},
	CodeInitData: {
		Refused, "The guest was launched with this initdata.",
		"compare the pod's initdata annotation with the file that was given, byte for byte",
	},
	CodeMeasurement: {
		Refused, "The launch digest is one of those that are allowed.",
		"compute the digest of the expected launch (coco measure) and compare firmware, kernel, command line and vCPUs",
	},
	CodeRegister: {
		Refused, "Each register that the caller names has one of the allowed values.",
		"compare the event log with that of a good launch to see the first event that differs",
	},
	CodeEventLog: {
		Forged, "The event log replays to the registers, and its digests are those of its data.",
		"trust no event of this log",
	},
	CodeDebug: {
		Refused, "The host cannot read or write the guest's memory through a debug interface.",
		"launch the guest without debugging",
	},
	CodeMigration: {
		Refused, "The guest cannot be moved to another machine.",
		"launch the guest without a migration agent",
	},
	CodeOutdated: {
		Outdated, "The platform's firmware is at least as new as the caller demands.",
		"update the platform's firmware, or lower the minimum if the older level is acceptable",
	},
}
