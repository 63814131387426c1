// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package snp verifies attestation reports of AMD SEV-SNP.
//
// Verify makes its checks in a fixed order. The report's structure and its key's kind come first, then the
// certificates: chain to AMD's root, validity, revocation. Then follows the report's signature, so that every later
// check compares values that the processor has signed: the certificate's chip and patch level, the order of the patch
// levels, and at last the caller's expectations. The first check that does not hold is the result.
//
// A report is signed by the chip's own key (VCEK) or by one that AMD gave to a cloud provider (VLEK). Requests tells
// which certificates and lists a report needs, by AMD's URLs; the package itself fetches nothing. AMD's roots are built
// in (AMD). The zero Verifier trusts no root.
package snp

import (
	"encoding/binary"
	"fmt"

	"github.com/coco-shim/coco/attestation"
)

// Sizes and offsets of ATTESTATION_REPORT: SEV-SNP firmware ABI, AMD 56860, table "ATTESTATION_REPORT structure".
const (
	// ReportSize is the length of a report.
	ReportSize   = 1184
	signedSize   = 0x2A0
	componentLen = 72 // of the signature's R and S, little-endian

	minVersion = 2
	maxVersion = 5
)

// Report is a decoded report. Nothing in it is verified.
type Report struct {
	Version      uint32
	GuestSVN     uint32
	Policy       Policy
	Launch       Launch
	VMPL         uint32
	SigAlgo      uint32
	TCB          Levels
	PlatformInfo PlatformInfo
	KeyInfo      KeyInfo
	ReportData   [64]byte
	ReportID     [2][32]byte // of the guest and of its migration agent
	CPU          CPU
	ChipID       [64]byte
	Firmware     Firmware

	signature [2 * componentLen]byte
}

// Launch are the fields that the launch of the guest has set.
type Launch struct {
	FamilyID, ImageID            [16]byte
	Measurement                  [48]byte
	HostData                     [32]byte
	IDKeyDigest, AuthorKeyDigest [48]byte
}

// Levels are the patch levels of a report, as they stand there; Product.TCB gives their bytes a meaning.
type Levels struct{ Current, Reported, Committed, Launch rawTCB }

// CPU is the processor's CPUID. A report of version 2 has none.
type CPU struct{ Family, Model, Stepping uint8 }

// Firmware are the versions of the secure processor's firmware, and the mitigations that it knows.
type Firmware struct {
	Current, Committed    Version
	LaunchMit, CurrentMit uint64 // from version 5 of the report on
}

// Version is a version of the firmware.
type Version struct{ Major, Minor, Build uint8 }

// String returns the version as AMD writes it.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Build) }

func (v Version) number() uint32 { return uint32(v.Major)<<16 | uint32(v.Minor)<<8 | uint32(v.Build) }

// Parse decodes a report. It refuses versions that it does not know and reserved fields that are not zero, because
// their meaning is not known. Bytes after the signature's two numbers are not signed and not read.
func Parse(b []byte) (*Report, error) {
	if len(b) != ReportSize {
		return nil, fail(attestation.CodeMalformed, "report", "%d bytes", "%d bytes", ReportSize, len(b))
	}
	r := &Report{
		Version: u32(b, 0), GuestSVN: u32(b, 4), Policy: Policy(u64(b, 8)), VMPL: u32(b, 0x30), SigAlgo: u32(b, 0x34),
		PlatformInfo: PlatformInfo(u64(b, 0x40)), KeyInfo: KeyInfo(u32(b, 0x48)),
		Launch: Launch{
			FamilyID: [16]byte(b[0x10:]), ImageID: [16]byte(b[0x20:]), Measurement: [48]byte(b[0x90:]),
			HostData: [32]byte(b[0xC0:]), IDKeyDigest: [48]byte(b[0xE0:]), AuthorKeyDigest: [48]byte(b[0x110:]),
		},
		ReportData: [64]byte(b[0x50:]), ReportID: [2][32]byte{[32]byte(b[0x140:]), [32]byte(b[0x160:])},
		TCB: Levels{
			Current: rawTCB(b[0x38:]), Reported: rawTCB(b[0x180:]), Committed: rawTCB(b[0x1E0:]),
			Launch: rawTCB(b[0x1F0:]),
		},
		ChipID: [64]byte(b[0x1A0:]),
		Firmware: Firmware{
			Current:   Version{Major: b[0x1EA], Minor: b[0x1E9], Build: b[0x1E8]},
			Committed: Version{Major: b[0x1EE], Minor: b[0x1ED], Build: b[0x1EC]},
		},
		signature: [2 * componentLen]byte(b[signedSize:]),
	}
	if r.Version < minVersion || r.Version > maxVersion {
		return nil, fail(attestation.CodeUnsupported, "version", "%d to %d", "%d", minVersion, maxVersion, r.Version)
	}
	if r.Version >= 3 {
		r.CPU = CPU{Family: b[0x188], Model: b[0x189], Stepping: b[0x18A]}
	}
	if r.Version >= 5 {
		r.Firmware.LaunchMit, r.Firmware.CurrentMit = u64(b, 0x1F8), u64(b, 0x200)
	}
	return r, r.reserved(b)
}

// gap is a range of reserved bytes of a report.
type gap struct{ from, to int }

// reserved refuses bytes and bits that no version up to the report's own has defined.
func (r *Report) reserved(b []byte) error {
	gaps := []gap{{0x4C, 0x50}, {0x188, 0x1A0}, {0x1EB, 0x1EC}, {0x1EF, 0x1F0}, {0x1F8, signedSize}}
	if r.Version >= 3 {
		gaps[1].from = 0x18B
	}
	if r.Version >= 5 {
		gaps[4].from = 0x208
	}
	for _, g := range gaps {
		for i := g.from; i < g.to; i++ {
			if b[i] != 0 {
				return fail(attestation.CodeReserved, "byte %#x", "0", "%d", i, b[i])
			}
		}
	}
	if extra := r.Policy &^ policyKnown; extra != 0 || r.Policy&policyOne == 0 {
		return fail(attestation.CodeReserved, "policy", "bit 17 and none above 25", "%#x", uint64(r.Policy))
	}
	if extra := r.PlatformInfo &^ platformKnown; extra != 0 {
		return fail(attestation.CodeReserved, "platform_info", "no unknown bit", "%#x", uint64(r.PlatformInfo))
	}
	if r.KeyInfo>>5 != 0 {
		return fail(attestation.CodeReserved, "key_info", "no bit above 4", "%#x", uint32(r.KeyInfo))
	}
	return nil
}

func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

func u64(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

// fail makes a failure. The arguments are those of the three formats, in this order.
func fail(code attestation.Code, field, expected, got string, args ...any) *attestation.Failure {
	take := func(format string) string {
		n := verbs(format)
		text := fmt.Sprintf(format, args[:n]...)
		args = args[n:]
		return text
	}
	return attestation.Fail(code, take(field), take(expected), take(got), nil)
}

// verbs counts the verbs of a format.
func verbs(format string) int {
	n := 0
	for i := range len(format) {
		if format[i] == '%' {
			n++
		}
	}
	return n
}
