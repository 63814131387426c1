// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/coco-shim/coco/attestation"
)

// ParseEvidence reads evidence in the JSON that CoCo's attesters send for "tpm": the public key of the AK, and the
// quote
// with its signature and the values of PCR 0 and on. An event log, which CoCo's do not send, may stand beside them.
func ParseEvidence(b []byte) (attestation.Evidence, error) {
	var e struct {
		Key          []byte `json:"ak_public"`
		Certificates []byte `json:"ak_certificates"`
		EventLog     []byte `json:"eventlog"`
		Quote        struct {
			Signature []byte   `json:"signature"`
			Message   []byte   `json:"message"`
			PCRs      []string `json:"pcrs"`
		} `json:"tpm_quote"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return attestation.Evidence{}, attestation.Fail(attestation.CodeMalformed, "evidence",
			"an object with ak_public and tpm_quote in base64", "other bytes", err)
	}
	if len(e.Quote.PCRs) > numPCRs {
		return attestation.Evidence{},
			malformed("evidence.pcrs", fmt.Sprintf("at most %d", numPCRs), fmt.Sprint(len(e.Quote.PCRs)))
	}
	pcrs := make(map[int][]byte, len(e.Quote.PCRs))
	for i, text := range e.Quote.PCRs {
		value, err := hex.DecodeString(text)
		if err != nil {
			return attestation.Evidence{}, attestation.Fail(attestation.CodeMalformed, "evidence."+pcrName(i),
				"a value in hexadecimal", fmt.Sprintf("%d characters", len(text)), err)
		}
		pcrs[i] = value
	}
	return attestation.Evidence{
		Type: attestation.TPM, Report: e.Quote.Message, Signature: e.Quote.Signature, Key: e.Key, PCRs: pcrs,
		Certificates: e.Certificates, EventLog: e.EventLog,
	}, nil
}
