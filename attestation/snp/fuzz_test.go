// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"slices"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

// FuzzVerify gives changed reports, certificate tables and documents to the verifier. It must not panic, and must not
// accept a report whose signed bytes are not those that were signed.
func FuzzVerify(f *testing.F) {
	m := snptest.Make(f, snptest.Spec{})
	table := snptest.Table(f, snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf},
		snptest.Entry{GUID: snptest.GUIDASK, Data: m.Middle})
	f.Add(m.Evidence.Report, table, m.Leaf, m.List)
	f.Add(m.Evidence.Report, []byte{}, m.Leaf, m.List)
	turin := snptest.Make(f, snptest.Spec{Product: snp.Turin, Version: 5, Key: snp.VLEK})
	vlek := snptest.Table(f, snptest.Entry{GUID: snptest.GUIDVLEK, Data: turin.Leaf})
	f.Add(turin.Evidence.Report, vlek, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, report, table, leaf, list []byte) {
		ev := attestation.Evidence{Type: attestation.SNP, Report: report, Certificates: table}
		col := attestation.Collateral{Now: snptest.Now, Documents: []attestation.Document{
			{Kind: snp.KindVCEK, Data: leaf}, {Kind: snp.KindChain, Data: m.Middle}, {Kind: snp.KindCRL, Data: list},
		}}
		if _, err := snp.Requests(ev); err != nil {
			fails(t, err)
		}
		claims, err := m.Verifier.Verify(ev, col, undecided())
		switch {
		case err != nil:
			fails(t, err)
		case !slices.Equal(report[:0x2A0], m.Evidence.Report[:0x2A0]):
			t.Errorf("a report that was never signed is accepted: %+v", claims)
		}
	})
}

// fails checks that an error is a failure with a code that is explained.
func fails(t *testing.T, err error) {
	t.Helper()
	failure, ok := attestation.FailureOf(err)
	if !ok || failure.Code.Explain().Class == "" {
		t.Errorf("not a failure with a known code: %v", err)
	}
	if failure.Field == "" || failure.Expected == "" || failure.Got == "" {
		t.Errorf("a failure without field, expected or got: %+v", failure)
	}
}
