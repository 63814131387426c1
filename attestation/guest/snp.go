// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/attestation/snp"
)

const (
	// familyTurin is the processor family of Zen 5, whose patch levels have another order (AMD 56860, TCB_VERSION).
	familyTurin = 0x1a
	cpuidFamily = 0x188 // in a report, from version 3 on

	signature = 0x2a0 // r and s, little-endian
	component = 72
)

// encodeSNP writes a report and the host's certificate table, which may be empty, as the JSON that CoCo's attesters
// send for "snp": the inverse of snp.ParseEvidence.
func encodeSNP(report, table []byte) (json.RawMessage, error) {
	if len(report) != snp.ReportSize {
		return nil, fmt.Errorf("a report of %d bytes, not %d", len(report), snp.ReportSize)
	}
	out := map[string]any{}
	turin, version := report[cpuidFamily] == familyTurin, binary.LittleEndian.Uint32(report)
	snp.Fields(func(name string, at, size int) {
		b := report[at : at+size]
		switch {
		case strings.HasPrefix(name, "cpuid_") && version < 3, strings.HasSuffix(name, "_mit_vector") && version < 5:
			out[name] = nil // no such field yet
		case strings.HasSuffix(name, "_tcb"):
			out[name] = levelsOf(b, turin)
		case size == 3:
			out[name] = map[string]byte{"build": b[0], "minor": b[1], "major": b[2]}
		case size <= 8:
			var all [8]byte
			copy(all[:], b)
			out[name] = binary.LittleEndian.Uint64(all[:])
		default:
			out[name] = intsOf(b)
		}
	})
	out["signature"] = map[string][]int{
		"r": intsOf(report[signature:][:component]), "s": intsOf(report[signature+component:][:component]),
	}
	names, certs, err := snp.AMDCertificates(table)
	if err != nil {
		return nil, fmt.Errorf("the host's certificates: %w", err)
	}
	var chain []map[string]any
	for i, der := range certs {
		chain = append(chain, map[string]any{"cert_type": names[i], "data": intsOf(der)})
	}
	return json.Marshal(map[string]any{"attestation_report": out, "cert_chain": chain})
}

// levelsOf is a patch level.
func levelsOf(b []byte, turin bool) map[string]any {
	if turin {
		return map[string]any{"fmc": b[0], "bootloader": b[1], "tee": b[2], "snp": b[3], "microcode": b[7]}
	}
	return map[string]any{"fmc": nil, "bootloader": b[0], "tee": b[1], "snp": b[6], "microcode": b[7]}
}

// intsOf writes bytes as CoCo does: a list of numbers.
func intsOf(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}
