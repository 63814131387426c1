// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"encoding/base64"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
)

func TestEvidenceOfCoCoIsRead(t *testing.T) {
	quote, log := base64.StdEncoding.EncodeToString([]byte("quote")), base64.StdEncoding.EncodeToString([]byte("log"))
	e, err := tdx.ParseEvidence([]byte(`{"quote":"` + quote + `","cc_eventlog":"` + log + `"}`))
	if err != nil || e.Type != attestation.TDX || string(e.Report) != "quote" || string(e.EventLog) != "log" {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = tdx.ParseEvidence([]byte(`{"quote":"` + quote + `","cc_eventlog":null,"aa_eventlog":null}`))
	if err != nil || string(e.Report) != "quote" || e.EventLog != nil {
		t.Errorf("without a log: %+v, %v", e, err)
	}
	for text, field := range map[string]string{
		`{"quote":"` + quote: "evidence", `{"quote":"?"}`: "evidence", `[]`: "evidence", `{}`: "evidence.quote",
	} {
		_, err := tdx.ParseEvidence([]byte(text))
		refused(t, err, attestation.CodeMalformed, field)
	}
}
