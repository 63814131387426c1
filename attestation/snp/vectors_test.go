// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"encoding/hex"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/tests/vectors"
)

// real is a published report with the certificate of its key.
type real struct {
	name, report, vcek string
	want               attestation.Code // with nothing allowed beyond the default
	measurement        string           // how it begins
}

var published = []real{
	{"google", "go-sev-guest/attestation.bin", "go-sev-guest/vcek.testcer", attestation.CodeDebug, "b07af962"},
	{"trustee", "trustee/test-report.bin", "trustee/test-vcek.der", "", "a1f39304"},
	{"virtee", "virtee-sev/report_milan.hex", "virtee-sev/vcek_milan.der", "", "7a1e5c26"},
}

func (r real) load(t *testing.T) (attestation.Evidence, attestation.Collateral) {
	t.Helper()
	dir := vectors.Dir(t)
	report, err := fs.ReadFile(dir, "reports/"+r.report)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(r.report, ".hex") {
		if report, err = hex.DecodeString(strings.TrimSpace(string(report))); err != nil {
			t.Fatal(err)
		}
	}
	vcek, err := fs.ReadFile(dir, "reports/"+r.vcek)
	if err != nil {
		t.Fatal(err)
	}
	return attestation.Evidence{Type: attestation.SNP, Report: report}, attestation.Collateral{
		Now:       time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Documents: []attestation.Document{{Kind: snp.KindVCEK, Name: r.vcek, Data: vcek}},
	}
}

// undecided leaves everything that concerns the workload to the caller.
func undecided() snp.Expectations {
	return snp.Expectations{Expectations: attestation.Expectations{Undecided: []attestation.Item{
		attestation.ItemReportData, attestation.ItemInitData, attestation.ItemMeasurement, snp.ItemTCB, snp.ItemRevocation,
	}}}
}

func TestPublishedReports(t *testing.T) {
	for _, r := range published {
		t.Run(r.name, func(t *testing.T) {
			ev, col := r.load(t)
			want := undecided()
			_, err := snp.AMD().Verify(ev, col, want)
			if got := codeOf(err); got != r.want {
				t.Fatalf("%v, want code %q", err, r.want)
			}
			want.AllowDebug = true
			claims, err := snp.AMD().Verify(ev, col, want)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(claims.Measurement.String(), r.measurement) || claims.Details["product"] != "Milan" {
				t.Errorf("measurement %s of %v, want %s of Milan", claims.Measurement, claims.Details["product"], r.measurement)
			}
			for _, other := range published {
				if other.name != r.name {
					_, foreign := other.load(t)
					_, err := snp.AMD().Verify(ev, foreign, want)
					if got := codeOf(err); got != attestation.CodeSignature {
						t.Errorf("with the certificate of %s: %v, want %s", other.name, err, attestation.CodeSignature)
					}
				}
			}
		})
	}
}

func codeOf(err error) attestation.Code {
	if f, ok := attestation.FailureOf(err); ok {
		return f.Code
	}
	if err != nil {
		return "no failure"
	}
	return ""
}
