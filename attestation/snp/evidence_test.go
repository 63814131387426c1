// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
)

func TestEvidenceForms(t *testing.T) {
	m := snptest.Make(t, snptest.Spec{})
	table := snptest.Table(t, snptest.Entry{GUID: snptest.GUIDVCEK, Data: m.Leaf})
	both := append(m.Evidence.Report[:snp.ReportSize:snp.ReportSize], table...)
	for name, tc := range map[string]struct {
		in    []byte
		certs []byte
	}{
		"bytes":            {m.Evidence.Report, nil},
		"bytes with table": {both, table},
		"digits":           {[]byte(hex.EncodeToString(m.Evidence.Report) + "\n"), nil},
		"digits and table": {[]byte(hex.EncodeToString(both)), table},
	} {
		ev, err := snp.ParseEvidence(tc.in)
		if err != nil || !cmp.Equal(ev.Report, m.Evidence.Report) || string(ev.Certificates) != string(tc.certs) {
			t.Errorf("%s: %d and %d bytes, %v", name, len(ev.Report), len(ev.Certificates), err)
		}
	}
	for name, in := range map[string]string{
		"empty": "", "short": "0200", "no report": "{}", "null": `{"attestation_report":null}`, "other JSON": "{]",
		"too large": string(make([]byte, 2<<20)),
	} {
		if _, err := snp.ParseEvidence([]byte(in)); codeOf(err) != attestation.CodeMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The report is built again from CoCo's JSON, so that its signature holds; a changed member breaks it.
func TestJSONOfCoCo(t *testing.T) {
	noBytes := append(make([]int, 63), 256)
	for _, p := range []snp.Product{snp.Milan, snp.Turin} {
		m := snptest.Make(t, snptest.Spec{Product: p, Version: 5})
		col := m.Collateral()
		col.Documents = col.Documents[2:] // the list; certificates are in the evidence
		parse := func(edit func(report map[string]any)) error {
			w := snptest.Wire(m, p)
			edit(w["attestation_report"].(map[string]any))
			text, err := json.Marshal(w)
			if err != nil {
				t.Fatal(err)
			}
			ev, err := snp.ParseEvidence(text)
			if err != nil {
				return err
			}
			_, err = m.Verifier.Verify(ev, col, undecided())
			return err
		}
		for name, tc := range map[string]struct {
			edit func(map[string]any)
			want attestation.Code
		}{
			"whole":             {func(map[string]any) {}, ""},
			"changed":           {func(r map[string]any) { r["guest_svn"] = 1 }, attestation.CodeSignature},
			"no measurement":    {func(r map[string]any) { delete(r, "measurement") }, attestation.CodeMalformed},
			"short measurement": {func(r map[string]any) { r["measurement"] = []int{1} }, attestation.CodeMalformed},
			"no byte":           {func(r map[string]any) { r["chip_id"] = noBytes }, attestation.CodeMalformed},
			"large number":      {func(r map[string]any) { r["vmpl"] = 1 << 32 }, attestation.CodeMalformed},
			"no signature":      {func(r map[string]any) { delete(r, "signature") }, attestation.CodeMalformed},
			"level is text":     {func(r map[string]any) { r["launch_tcb"] = "x" }, attestation.CodeMalformed},
		} {
			if err := parse(tc.edit); codeOf(err) != tc.want {
				t.Errorf("%s, %s: %v, want %q", p, name, err, tc.want)
			}
		}
	}
}

func FuzzParseEvidence(f *testing.F) {
	m := snptest.Make(f, snptest.Spec{Version: 5})
	text, err := json.Marshal(snptest.Wire(m, snp.Milan))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(m.Evidence.Report)
	f.Add([]byte(hex.EncodeToString(m.Evidence.Report)))
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := snp.ParseEvidence(b)
		if err != nil {
			fails(t, err)
			return
		}
		if len(ev.Report) != snp.ReportSize {
			t.Errorf("a report of %d bytes", len(ev.Report))
		}
	})
}
