// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"encoding/json"

	"github.com/coco-shim/coco/attestation"
)

// ParseEvidence reads evidence in the JSON that CoCo's attesters send for "tdx": the quote, and the event log or null.
func ParseEvidence(b []byte) (attestation.Evidence, error) {
	var e struct {
		Quote    []byte `json:"quote"`
		EventLog []byte `json:"cc_eventlog"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return attestation.Evidence{}, attestation.Fail(attestation.CodeMalformed, "evidence",
			"an object with quote and cc_eventlog in base64", "other bytes", err)
	}
	if len(e.Quote) == 0 {
		return attestation.Evidence{}, malformed("evidence.quote", "a quote", "none")
	}
	return attestation.Evidence{Type: attestation.TDX, Report: e.Quote, EventLog: e.EventLog}, nil
}
