// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tdx verifies quotes of Intel TDX: the proof of a quoting enclave that a TD runs on a processor of Intel.
//
// The chain of trust has five links. Intel's root certificate is known here by its public key. It signs the certificate
// of the platform (PCK), whose key signs the report of the quoting enclave. That report names the attestation key, and
// the attestation key signs the quote's header and body. The fifth link are documents of Intel that are valid for some
// weeks: TCB info of the platform's kind, identity of the quoting enclave, and lists of revoked certificates. They tell
// whether firmware, TDX module and quoting enclave are up to date.
//
// Verify walks that chain, judges the platform's TCB, compares the TD's attributes and measurements with what the
// caller
// expects, and replays the event log (CCEL) against the quote's registers. Each digest whose bytes are in the log is
// computed
// again, and the claims say of each event whether its digest covers its data.
//
// The package reads no file and no clock. Requests names the documents that a quote needs, package collateral fetches
// them.
//
// Sources: Intel TDX DCAP Quoting Library API (quote formats 4 and 5), Intel SGX PCK Certificate and Certificate
// Revocation
// List Profile Specification, Intel API for provisioning certification (TCB info 3, enclave identity 2), TDX Module
// ABI specification (TD attributes), TCG PC Client Platform Firmware Profile (event log).
package tdx
