// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Registers of the save area that a VMM can set through KVM, besides those in vmsa.go.
const (
	offCR3, offRSP, offRAX = 0x150, 0x1d8, 0x1f8
	offRCX, offRBX         = 0x308, 0x318
	offRBP, offR15         = 0x328, 0x378

	offCPL = 0xcb

	vmsaUsed = 0x670 // the rest of the page is padding
)

// kvmResetPage is the state in which KVM creates a processor, measured if the VMM leaves it alone.
func kvmResetPage(features uint64) *[pageSize]byte {
	s := cpuState{
		eip: bspEIP, features: features, rdx: 0x600, csAttr: 0x9a, ssAttr: 0x92, trAttr: 0x83, pat: patReset,
		mxcsr: 0x1f80, fcw: 0x37f,
	}
	p := s.page()
	for _, off := range []int{offES, offDS, offFS, offGS} {
		binary.LittleEndian.PutUint16(p[off+2:], 0x92)
	}
	return p
}

func vmsaFeatures(vmsa []byte) uint64 { return binary.LittleEndian.Uint64(vmsa[offFeatures:]) }

// kvmPage is the state that KVM measures after a VMM set a processor's registers from a save area:
// what Cloud Hypervisor's setup_sev_snp_regs passes on, over the reset state. Fields of the save area
// that do not travel through registers (debug and floating-point registers, PAT, XCR0) are lost.
func kvmPage(vmsa []byte, features uint64) (*[pageSize]byte, error) {
	le := binary.LittleEndian
	p := kvmResetPage(features)
	for _, off := range []int{offES, offCS, offSS, offDS, offFS, offGS, offLDTR, offTR} {
		copy(p[off:off+16], vmsa[off:off+16])
		attr := le.Uint16(vmsa[off+2:])
		if attr>>12 != 0 {
			return nil, fmt.Errorf("segment at %#x has attributes %#x beyond 12 bits", off, attr)
		}
	}
	for _, off := range []int{offGDTR, offIDTR} {
		if limit := le.Uint32(vmsa[off+4:]); limit > 0xffff {
			return nil, fmt.Errorf("descriptor table at %#x has limit %#x beyond 16 bits", off, limit)
		}
		copy(p[off+4:off+16], vmsa[off+4:off+16])
	}
	le.PutUint64(p[offEFER:], le.Uint64(vmsa[offEFER:])|0x1000)
	le.PutUint64(p[offCR4:], le.Uint64(vmsa[offCR4:])|0x40)
	le.PutUint64(p[offCR0:], le.Uint64(vmsa[offCR0:])&^(1<<30|1<<29)) // KVM drops CD and NW
	le.PutUint64(p[offRFLAGS:], le.Uint64(vmsa[offRFLAGS:])|2)
	for _, off := range []int{offCR3, offRIP, offRSP, offRAX, offRCX, offRDX, offRBX} {
		copy(p[off:off+8], vmsa[off:off+8])
	}
	copy(p[offRBP:offR15+8], vmsa[offRBP:offR15+8])
	p[offCPL] = byte(le.Uint16(vmsa[offSS+2:]) >> 5 & 3) // svm_set_segment takes it from SS
	for _, b := range vmsa[vmsaUsed:pageSize] {
		if b != 0 {
			return nil, errors.New("bytes after the save area are not zero")
		}
	}
	return p, nil
}

// BootContext returns the save area of a processor at the reset vector, as QEMU launches it and as
// files for Cloud Hypervisor can carry it.
func BootContext(signature uint32, features uint64) []byte {
	return QEMU.state(bspEIP, signature, features).page()[:]
}
