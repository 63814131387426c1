// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

// An encoded report is read as the same bytes, so that signatures hold.
func TestEvidenceIsReadAsItWasWritten(t *testing.T) {
	for _, s := range []snptest.Spec{
		{Product: snp.Milan, Version: 2},
		{Product: snp.Milan, Version: 3},
		{Product: snp.Genoa, Version: 5},
		{Product: snp.Turin, Version: 5},
	} {
		m := snptest.Make(t, s)
		given, err := json.Marshal(snptest.Wire(m, s.Product))
		if err != nil {
			t.Fatal(err)
		}
		with, err := snp.ParseEvidence(given) // for a table of certificates
		if err != nil {
			t.Fatal(err)
		}
		for name, table := range map[string][]byte{"certificates": with.Certificates, "no certificates": nil} {
			text, err := encodeSNP(m.Evidence.Report, table)
			if err != nil {
				t.Fatal(err)
			}
			e, err := snp.ParseEvidence(text)
			again, err2 := encodeSNP(e.Report, e.Certificates) // the table may be laid out in another way
			if errors.Join(err, err2) != nil || !bytes.Equal(e.Report, m.Evidence.Report) || !bytes.Equal(again, text) ||
				(len(e.Certificates) == 0) != (len(table) == 0) {
				t.Errorf("%s %d, %s: %v\n% x\n% x", s.Product, s.Version, name, err, e.Report, m.Evidence.Report)
				continue
			}
			if _, err := m.Verifier.Verify(e, m.Collateral(), snp.Expectations{Expectations: attestation.Expectations{
				Undecided: []attestation.Item{
					attestation.ItemReportData, attestation.ItemInitData, attestation.ItemMeasurement,
					snp.ItemTCB, snp.ItemRevocation,
				},
			}}); err != nil {
				t.Errorf("%s %d, %s: %v", s.Product, s.Version, name, err)
			}
		}
		if _, err := encodeSNP(m.Evidence.Report[1:], nil); err == nil {
			t.Error("a report that is cut was encoded")
		}
		if _, err := encodeSNP(m.Evidence.Report, []byte{1}); err == nil {
			t.Error("a table that is cut was encoded")
		}
	}
}
