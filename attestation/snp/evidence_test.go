// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"encoding/binary"
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

func ints(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

// wire writes evidence as CoCo's attester does: the report as virtee's crate sev prints it.
func wire(m *snptest.Made, p snp.Product) map[string]any {
	b := m.Evidence.Report
	le := binary.LittleEndian
	tcb := func(at int) map[string]any {
		t, _ := p.TCB([8]byte(b[at:]))
		out := map[string]any{"bootloader": t.Bootloader, "tee": t.TEE, "snp": t.SNP, "microcode": t.Microcode, "fmc": nil}
		if p == snp.Turin {
			out["fmc"] = t.FMC
		}
		return out
	}
	version := func(at int) map[string]any {
		return map[string]any{"build": b[at], "minor": b[at+1], "major": b[at+2]}
	}
	report := map[string]any{
		"version": le.Uint32(b), "guest_svn": le.Uint32(b[4:]), "policy": le.Uint64(b[8:]), "vmpl": le.Uint32(b[0x30:]),
		"sig_algo": le.Uint32(b[0x34:]), "plat_info": le.Uint64(b[0x40:]), "key_info": le.Uint32(b[0x48:]),
		"family_id": ints(b[0x10:0x20]), "image_id": ints(b[0x20:0x30]), "report_data": ints(b[0x50:0x90]),
		"measurement": ints(b[0x90:0xC0]), "host_data": ints(b[0xC0:0xE0]), "id_key_digest": ints(b[0xE0:0x110]),
		"author_key_digest": ints(b[0x110:0x140]), "report_id": ints(b[0x140:0x160]), "report_id_ma": ints(b[0x160:0x180]),
		"cpuid_fam_id": b[0x188], "cpuid_mod_id": b[0x189], "cpuid_step": b[0x18A], "chip_id": ints(b[0x1A0:0x1E0]),
		"current_tcb": tcb(0x38), "reported_tcb": tcb(0x180), "committed_tcb": tcb(0x1E0), "launch_tcb": tcb(0x1F0),
		"current": version(0x1E8), "committed": version(0x1EC),
		"launch_mit_vector": le.Uint64(b[0x1F8:]), "current_mit_vector": le.Uint64(b[0x200:]),
		"signature": map[string]any{"r": ints(b[0x2A0 : 0x2A0+72]), "s": ints(b[0x2A0+72 : 0x2A0+144])},
	}
	return map[string]any{"attestation_report": report, "cert_chain": []any{
		map[string]any{"cert_type": "VCEK", "data": ints(m.Leaf)},
		map[string]any{"cert_type": "ASK", "data": ints(m.Middle)},
		map[string]any{"cert_type": "CRL", "data": []int{1}},
	}}
}

// The report is built again from CoCo's JSON, so that its signature holds; a changed member breaks it.
func TestJSONOfCoCo(t *testing.T) {
	noBytes := append(make([]int, 63), 256)
	for _, p := range []snp.Product{snp.Milan, snp.Turin} {
		m := snptest.Make(t, snptest.Spec{Product: p, Version: 5})
		col := m.Collateral()
		col.Documents = col.Documents[2:] // the list; certificates are in the evidence
		parse := func(edit func(report map[string]any)) error {
			w := wire(m, p)
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
	text, err := json.Marshal(wire(m, snp.Milan))
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
