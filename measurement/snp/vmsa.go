// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import "encoding/binary"

// bspEIP is the architectural reset vector, where the first processor starts.
const bspEIP = 0xfffffff0

// vmsaGPA is the address with which KVM measures every processor's state: all ones, cut to the
// page and to the 48 bits that KVM passes.
const vmsaGPA = 0x0000_ffff_ffff_f000

// Offsets into the save area (AMD APM volume 2, table B-4).
const (
	offES, offCS, offSS, offDS, offFS, offGS = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50
	offGDTR, offLDTR, offIDTR, offTR         = 0x60, 0x70, 0x80, 0x90

	offEFER, offCR4, offCR0        = 0xd0, 0x148, 0x158
	offDR7, offDR6                 = 0x160, 0x168
	offRFLAGS, offRIP              = 0x170, 0x178
	offPAT, offRDX                 = 0x268, 0x310
	offFeatures, offXCR0           = 0x3b0, 0x3e8
	offMXCSR, offFCW               = 0x408, 0x410
	patReset                uint64 = 0x0007040600070406 // APM volume 2, 7.8.2
	patGCE                  uint64 = 0x0000000000070106
)

// cpuState is what differs between the processors and hypervisors at launch.
type cpuState struct {
	eip      uint32
	features uint64
	rdx      uint32
	csAttr   uint16
	ssAttr   uint16
	trAttr   uint16
	pat      uint64
	mxcsr    uint32
	fcw      uint16
}

// state returns the initial state of a processor that starts at eip.
func (v VMM) state(eip, signature uint32, features uint64) cpuState {
	s := cpuState{eip: eip, features: features, rdx: signature, csAttr: 0x9b, ssAttr: 0x93, trAttr: 0x8b, pat: patReset}
	switch v {
	case QEMU:
		s.mxcsr, s.fcw = 0x1f80, 0x37f
	case QEMULegacy:
	case EC2, EC22023:
		// A processor that starts at the reset vector keeps KVM's reset state, in which the
		// accessed bit of CS is not set; one that is moved elsewhere gets it.
		if eip == bspEIP {
			s.csAttr = 0x9a
		}
		s.ssAttr, s.trAttr = 0x92, 0x83
		s.rdx = 0
		if v == EC2 {
			s.rdx = 0x600
		}
	case GCE:
		s.rdx, s.pat = 0x600, patGCE
	}
	return s
}

// page renders the state as the save-area page that is measured.
func (s cpuState) page() *[pageSize]byte {
	p := new([pageSize]byte)
	le := binary.LittleEndian
	segment := func(off int, selector, attr uint16, base uint64) {
		le.PutUint16(p[off:], selector)
		le.PutUint16(p[off+2:], attr)
		le.PutUint32(p[off+4:], 0xffff)
		le.PutUint64(p[off+8:], base)
	}
	for _, off := range []int{offES, offDS, offFS, offGS} {
		segment(off, 0, 0x93, 0)
	}
	segment(offSS, 0, s.ssAttr, 0)
	segment(offCS, 0xf000, s.csAttr, uint64(s.eip&0xffff0000))
	segment(offGDTR, 0, 0, 0)
	segment(offLDTR, 0, 0x82, 0)
	segment(offIDTR, 0, 0, 0)
	segment(offTR, 0, s.trAttr, 0)
	le.PutUint64(p[offEFER:], 0x1000) // SVME, set by KVM
	le.PutUint64(p[offCR4:], 0x40)    // MCE, set by KVM
	le.PutUint64(p[offCR0:], 0x10)
	le.PutUint64(p[offDR7:], 0x400)
	le.PutUint64(p[offDR6:], 0xffff0ff0)
	le.PutUint64(p[offRFLAGS:], 2)
	le.PutUint64(p[offRIP:], uint64(s.eip&0xffff))
	le.PutUint64(p[offPAT:], s.pat)
	le.PutUint64(p[offRDX:], uint64(s.rdx))
	le.PutUint64(p[offFeatures:], s.features)
	le.PutUint64(p[offXCR0:], 1)
	le.PutUint32(p[offMXCSR:], s.mxcsr)
	le.PutUint16(p[offFCW:], s.fcw)
	return p
}
