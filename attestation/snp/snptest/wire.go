// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snptest

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/coco-shim/coco/attestation/snp"
)

// Again returns evidence of the same chip with another report: edit changes the report before it is signed.
func (m *Made) Again(tb testing.TB, edit func(report []byte)) *Made {
	tb.Helper()
	n := *m
	n.Evidence.Report = slices.Clone(m.Evidence.Report)
	edit(n.Evidence.Report)
	Sign(tb, n.Evidence.Report, m.key)
	return &n
}

// ints writes bytes as crate serde writes them.
func ints(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

// Wire writes evidence as CoCo's attester does: the report as virtee's crate sev prints it.
func Wire(m *Made, p snp.Product) map[string]any {
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
