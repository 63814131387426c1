// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
)

func TestEvidenceOfCoCoIsRead(t *testing.T) {
	r := newRound(t, tpmtest.NewRSA(t), nil)
	var pcrs []string
	for i := range 24 {
		pcrs = append(pcrs, hex.EncodeToString(r.evidence.PCRs[i]))
	}
	text, err := json.Marshal(map[string]any{
		"ak_public": r.evidence.Key,
		"tpm_quote": map[string]any{"signature": r.evidence.Signature, "message": r.evidence.Report, "pcrs": pcrs},
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := tpm.ParseEvidence(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.PCRs) != 24 || !bytes.Equal(e.PCRs[23], r.evidence.PCRs[23]) {
		t.Errorf("PCRs %v", e.PCRs)
	}
	r.evidence = e
	if _, err := r.verify(); err != nil {
		t.Error(err)
	}
	for bad, field := range map[string]string{
		`{"ak_public":`: "evidence", `{"ak_public":"?"}`: "evidence", `{"tpm_quote":{"pcrs":["0g"]}}`: "evidence.pcr00",
		`{"tpm_quote":{"pcrs":[` + strings.Repeat(`"",`, 24) + `""]}}`: "evidence.pcrs",
	} {
		_, err := tpm.ParseEvidence([]byte(bad))
		refused(t, err, attestation.CodeMalformed, field)
	}
}
