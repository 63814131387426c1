// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tpm verifies quotes of a TPM 2.0: the proof of an attestation key (AK) that the TPM's registers (PCRs) had
// certain values when it was asked.
//
// A quote (TPMS_ATTEST) holds the verifier's nonce, which PCRs were selected, and one digest over their values. The
// values
// themselves come beside it and prove nothing alone. Verify checks that the structure was made by a TPM (magic and
// type), that
// the AK is restricted and so signs nothing else of that form, its signature, the origin of the AK, that the selection
// is
// the one that was asked for, that the values lead to the digest, and then the values. An event log is replayed.
//
// A quote says nothing about the machine around the TPM. The origin of the AK carries all the trust: a certificate of
// a CA
// that the caller knows, or a name that the caller has bound to a TPM in another way. With a TPM in software that the
// host
// runs, the proof is as good as that host, and the memory of the guest stays open to it.
//
// Sources: TPM 2.0 Library, part 2 (TPMS_ATTEST 10.12.12, TPMT_SIGNATURE 11.3.4, TPMT_PUBLIC 12.2.4, TPMA_OBJECT 8.3),
// TCG PC
// Client Platform Firmware Profile (event log).
package tpm
