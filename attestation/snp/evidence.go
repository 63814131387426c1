// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/attestation"
)

// maxEvidence bounds what ParseEvidence reads: JSON writes a byte with up to four digits.
const maxEvidence = 1 << 20

// ParseEvidence reads evidence in one of these forms: the bytes of a report, with the host's certificate table behind
// it or without; both as hexadecimal digits; the JSON that CoCo's attesters send for "snp".
func ParseEvidence(b []byte) (attestation.Evidence, error) {
	var none attestation.Evidence
	if len(b) > maxEvidence {
		return none, fail(attestation.CodeMalformed, "evidence", "at most %d bytes", "%d", maxEvidence, len(b))
	}
	text := bytes.TrimSpace(b)
	if len(text) > 0 && text[0] == '{' {
		return parseJSON(text)
	}
	if len(text) >= 2*ReportSize {
		if raw, err := hex.DecodeString(string(text)); err == nil {
			b = raw
		}
	}
	if len(b) < ReportSize {
		return none, fail(attestation.CodeMalformed, "evidence", "at least %d bytes", "%d", ReportSize, len(b))
	}
	return attestation.Evidence{Type: attestation.SNP, Report: b[:ReportSize], Certificates: b[ReportSize:]}, nil
}

// wireTCB is a patch level in the JSON of virtee's crate sev. A level of the FMC makes it one of Turin.
type wireTCB struct {
	FMC                             *uint8
	Bootloader, TEE, SNP, Microcode uint8
}

func (t wireTCB) raw() []byte {
	if t.FMC != nil {
		return []byte{*t.FMC, t.Bootloader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return []byte{t.Bootloader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
}

// wireVersion is a version of the firmware there.
type wireVersion struct{ Major, Minor, Build uint8 }

func (v wireVersion) raw() []byte { return []byte{v.Build, v.Minor, v.Major} }

// wireEvidence is the JSON of Trustee. The report's fields are decoded by placing each where it belongs.
type wireEvidence struct {
	Report map[string]json.RawMessage `json:"attestation_report"`
	Chain  []wireCertificate          `json:"cert_chain"`
}

type wireCertificate struct {
	Type string `json:"cert_type"`
	Ints []int  `json:"data"`
}

// wireField says where a member of the report lies.
type wireField struct {
	at, size int
	required bool
}

var wireFields = map[string]wireField{
	"version": {0, 4, true}, "guest_svn": {4, 4, true}, "policy": {8, 8, true}, "family_id": {0x10, 16, true},
	"image_id": {0x20, 16, true}, "vmpl": {0x30, 4, true}, "sig_algo": {0x34, 4, true}, "current_tcb": {0x38, 8, true},
	"plat_info": {0x40, 8, true}, "key_info": {0x48, 4, true}, "report_data": {0x50, 64, true},
	"measurement": {0x90, 48, true}, "host_data": {0xC0, 32, true}, "id_key_digest": {0xE0, 48, true},
	"author_key_digest": {0x110, 48, true}, "report_id": {0x140, 32, true}, "report_id_ma": {0x160, 32, true},
	"reported_tcb": {0x180, 8, true}, "cpuid_fam_id": {0x188, 1, false}, "cpuid_mod_id": {0x189, 1, false},
	"cpuid_step": {0x18A, 1, false}, "chip_id": {0x1A0, 64, true}, "committed_tcb": {0x1E0, 8, true},
	"current": {0x1E8, 3, true}, "committed": {0x1EC, 3, true}, "launch_tcb": {0x1F0, 8, true},
	"launch_mit_vector": {0x1F8, 8, false}, "current_mit_vector": {0x200, 8, false},
}

// parseJSON builds the report again, byte for byte, so that its signature can be checked.
func parseJSON(b []byte) (attestation.Evidence, error) {
	bad := func(field, expected string, err error) (attestation.Evidence, error) {
		return attestation.Evidence{}, attestation.Fail(attestation.CodeMalformed, field, expected, "not", err)
	}
	var w wireEvidence
	if err := json.Unmarshal(b, &w); err != nil {
		return bad("evidence", "an object with attestation_report and cert_chain", err)
	}
	report := make([]byte, ReportSize)
	for name, f := range wireFields {
		text, ok := w.Report[name]
		if !ok || string(text) == "null" {
			if f.required {
				return bad("attestation_report."+name, "a value", nil)
			}
			continue
		}
		if err := f.place(report, name, text); err != nil {
			return bad("attestation_report."+name, "a value of the report", err)
		}
	}
	var sig struct{ R, S []int }
	if err := json.Unmarshal(w.Report["signature"], &sig); err != nil {
		return bad("attestation_report.signature", "r and s", err)
	}
	for i, n := range [][]int{sig.R, sig.S} {
		v, err := octetsOf(n, componentLen)
		if err != nil {
			return bad("attestation_report.signature", "72 bytes each", err)
		}
		copy(report[signedSize+i*componentLen:], v)
	}
	table, err := w.table()
	if err != nil {
		return bad("cert_chain", "certificates", err)
	}
	return attestation.Evidence{Type: attestation.SNP, Report: report, Certificates: table}, nil
}

// place decodes a member and puts it into the report.
func (f wireField) place(report []byte, name string, text json.RawMessage) error {
	to := report[f.at : f.at+f.size]
	switch {
	case strings.HasSuffix(name, "_tcb"):
		var t wireTCB
		if err := json.Unmarshal(text, &t); err != nil {
			return err
		}
		copy(to, t.raw())
	case f.size == 3:
		var v wireVersion
		if err := json.Unmarshal(text, &v); err != nil {
			return err
		}
		copy(to, v.raw())
	case f.size <= 8:
		var n uint64
		if err := json.Unmarshal(text, &n); err != nil {
			return err
		}
		if f.size < 8 && n>>(8*f.size) != 0 {
			return fmt.Errorf("%d does not fit in %d bytes", n, f.size)
		}
		var all [8]byte
		binary.LittleEndian.PutUint64(all[:], n)
		copy(to, all[:])
	default:
		var ints []int
		if err := json.Unmarshal(text, &ints); err != nil {
			return err
		}
		v, err := octetsOf(ints, f.size)
		if err != nil {
			return err
		}
		copy(to, v)
	}
	return nil
}

// octetsOf converts JSON numbers to bytes. A negative size accepts any number of them.
func octetsOf(ints []int, size int) ([]byte, error) {
	if size >= 0 && len(ints) != size {
		return nil, fmt.Errorf("%d bytes, not %d", len(ints), size)
	}
	out := make([]byte, len(ints))
	for i, n := range ints {
		if n < 0 || n > 255 {
			return nil, fmt.Errorf("%d is no byte", n)
		}
		out[i] = byte(n)
	}
	return out, nil
}

// table writes the chain as the host's certificate table.
func (w wireEvidence) table() ([]byte, error) {
	if len(w.Chain) > maxEntries-1 {
		return nil, fmt.Errorf("%d certificates; at most %d are read", len(w.Chain), maxEntries-1)
	}
	guids := map[string]string{"VCEK": guidVCEK, "VLEK": guidVLEK, "ASK": guidASK, "ARK": guidARK}
	var head, data []byte
	first := (len(w.Chain) + 1) * entrySize
	for _, c := range w.Chain {
		guid, ok := guids[c.Type]
		if !ok {
			continue // such as a CRL, which the caller gets from AMD
		}
		der, err := octetsOf(c.Ints, -1)
		if err != nil {
			return nil, err
		}
		name, err := hex.DecodeString(strings.ReplaceAll(guid, "-", ""))
		if err != nil {
			return nil, err
		}
		if first+len(data)+len(der) > maxTable {
			return nil, fmt.Errorf("certificates of more than %d bytes", maxTable)
		}
		head = append(head, name...)
		head = binary.LittleEndian.AppendUint32(head, uint32(first+len(data))) //nolint:gosec // at most maxTable
		head = binary.LittleEndian.AppendUint32(head, uint32(len(der)))        //nolint:gosec // likewise
		data = append(data, der...)
	}
	if len(head) == 0 {
		return nil, nil
	}
	return append(append(head, make([]byte, first-len(head))...), data...), nil
}

// Fields calls fn with the name in CoCo's JSON, the offset and the size of each field of a report.
func Fields(fn func(name string, at, size int)) {
	for name, f := range wireFields {
		fn(name, f.at, f.size)
	}
}

// AMDCertificates returns those certificates of a host's table that CoCo's JSON has, in the order of the chain.
func AMDCertificates(table []byte) (names []string, der [][]byte, err error) {
	certs, err := parseTable(table)
	for _, c := range [][2]string{{"VCEK", guidVCEK}, {"VLEK", guidVLEK}, {"ASK", guidASK}, {"ARK", guidARK}} {
		if b := certs[c[1]]; len(b) > 0 {
			names, der = append(names, c[0]), append(der, b)
		}
	}
	return names, der, err
}
