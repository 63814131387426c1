// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto"
	_ "crypto/sha256" // the hashes of banks and signatures
	_ "crypto/sha512"
	"fmt"

	"github.com/coco-shim/coco/attestation"
)

// Values of TPM 2.0 Library, part 2.
const (
	generated   = 0xff544347 // TPM_GENERATED_VALUE: no restricted key signs other bytes that begin so
	attestQuote = 0x8018     // TPM_ST_ATTEST_QUOTE
	algRSA      = 0x0001
	algNull     = 0x0010
	algRSASSA   = 0x0014
	algRSAPSS   = 0x0016
	algECDSA    = 0x0018
	algECC      = 0x0023
)

// hashes are the algorithms of banks, names and signatures that count as safe. SHA-1 does not.
var hashes = map[uint16]crypto.Hash{0x000b: crypto.SHA256, 0x000c: crypto.SHA384, 0x000d: crypto.SHA512}

const (
	// numPCRs is how many PCRs a TPM of a PC has.
	numPCRs = 24
	// maxSelect is the longest bitmap of PCRs (TPM2_PCR_SELECT_MAX).
	maxSelect = 4
	// maxPart bounds each part of the evidence but the event log.
	maxPart = 64 << 10
)

// Quote is a TPMS_ATTEST of a quote that can be read. Nothing in it is proven.
type Quote struct {
	Signer          attestation.Hex // qualified name of the AK: its own name and those of its parents
	ExtraData       attestation.Hex
	Clock           uint64 // milliseconds
	ResetCount      uint32
	RestartCount    uint32
	Safe            bool // the clock did not go back
	FirmwareVersion uint64
	Selections      []Selection
	PCRDigest       attestation.Hex
}

// Selection is a set of PCRs of one bank.
type Selection struct {
	Bank crypto.Hash
	PCRs []int // ascending
}

// String returns the selection as tpm2-tools write it.
func (s Selection) String() string {
	text := bankName(s.Bank) + ":"
	for i, n := range s.PCRs {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprint(n)
	}
	return text
}

func bankName(h crypto.Hash) string {
	switch h {
	case crypto.SHA256:
		return "sha256"
	case crypto.SHA384:
		return "sha384"
	case crypto.SHA512:
		return "sha512"
	}
	return "unknown"
}

// Parse reads a TPMS_ATTEST that is a quote.
func Parse(b []byte) (*Quote, error) {
	if len(b) > maxPart {
		return nil, malformed("quote", fmt.Sprintf("at most %d bytes", maxPart), fmt.Sprint(len(b)))
	}
	r := &reader{what: "quote", rest: b}
	q := &Quote{}
	magic, kind := r.u32("magic"), r.u16("type")
	if r.failed == nil && magic != generated {
		return nil, attestation.Fail(attestation.CodeTPMQuote, "quote.magic",
			fmt.Sprintf("%#08x, which only a TPM puts before its words",
				uint32(generated)), fmt.Sprintf("%#08x", magic), nil)
	}
	if r.failed == nil && kind != attestQuote {
		return nil, attestation.Fail(attestation.CodeTPMQuote, "quote.type",
			fmt.Sprintf("%#04x (quote)", uint16(attestQuote)),
			fmt.Sprintf("%#04x", kind), nil)
	}
	q.Signer = r.sized("qualified_signer")
	q.ExtraData = r.sized("extra_data")
	q.Clock, q.ResetCount, q.RestartCount = r.u64("clock"), r.u32("reset_count"), r.u32("restart_count")
	switch safe := r.u8("safe"); {
	case safe > 1:
		return nil, malformed("quote.safe", "0 or 1", fmt.Sprint(safe))
	case safe == 1:
		q.Safe = true
	}
	q.FirmwareVersion = r.u64("firmware_version")
	if err := q.readSelections(r); err != nil {
		return nil, err
	}
	q.PCRDigest = r.sized("pcr_digest")
	return q, r.end()
}

func (q *Quote) readSelections(r *reader) error {
	count := r.u32("pcr_select.count")
	if int64(count) > int64(len(hashes)) { // one of each bank
		return malformed("quote.pcr_select.count", fmt.Sprintf("at most %d", len(hashes)), fmt.Sprint(count))
	}
	for range count {
		bank, size := r.u16("pcr_select.hash"), r.u8("pcr_select.size")
		if size > maxSelect {
			return malformed("quote.pcr_select.size", fmt.Sprintf("at most %d", maxSelect), fmt.Sprint(size))
		}
		bits := r.take("pcr_select", int(size))
		if r.failed != nil {
			return r.failed
		}
		h, ok := hashes[bank]
		if !ok {
			return unsupported("quote.pcr_select.hash", "SHA-256, SHA-384 or SHA-512", fmt.Sprintf("%#04x", bank))
		}
		s := Selection{Bank: h}
		for i := range 8 * len(bits) {
			if bits[i/8]&(1<<(i%8)) != 0 {
				s.PCRs = append(s.PCRs, i)
			}
		}
		q.Selections = append(q.Selections, s)
	}
	return r.failed
}
