// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
)

// SVSMLaunch is a launch in which an SVSM (a service module such as Coconut) starts at VMPL 0 and starts the firmware
// itself, as the QEMU of the Coconut project does without IGVM: the firmware's code lies below 4 GiB, a store of
// variables of VarsSize bytes below it, and the SVSM ends where that begins.
type SVSMLaunch struct {
	Firmware []byte // its code alone
	SVSM     []byte
	VarsSize uint64 // not measured; it moves the SVSM

	VCPUs     int
	Signature uint32
	Features  uint64
}

// maxVars bounds the store of variables: more would not fit below 4 GiB.
const maxVars = 64 << 20

// MeasureSVSM returns the digest of a launch with an SVSM.
func MeasureSVSM(l SVSMLaunch, t *measurement.Trace) (measurement.Digest, error) {
	d, err := measureSVSM(l, t)
	if err != nil {
		return nil, fmt.Errorf("snp launch digest with an SVSM: %w", err)
	}
	return d, nil
}

func measureSVSM(l SVSMLaunch, t *measurement.Trace) (measurement.Digest, error) {
	if err := checkVCPUs(l.VCPUs); err != nil {
		return nil, err
	}
	if l.Features&FeatureSNPActive == 0 {
		return nil, fmt.Errorf("guest features %#x lack bit 0 (SNPActive), which every SNP machine has", l.Features)
	}
	if l.VarsSize%pageSize != 0 || l.VarsSize > maxVars {
		return nil, fmt.Errorf("a store of variables of %d bytes is not a number of pages up to %d bytes",
			l.VarsSize, maxVars)
	}
	fw, err := ovmf.ParseModule(l.Firmware) // from flash memory, so not in units of 64 KiB
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	im, err := ovmf.ParseModule(l.SVSM)
	if err != nil {
		return nil, fmt.Errorf("SVSM: %w", err)
	}
	m, err := im.SEV()
	if err != nil {
		return nil, fmt.Errorf("SVSM: %w", err)
	}
	if err := m.Check(len(l.Firmware) + int(l.VarsSize) + len(l.SVSM)); err != nil {
		return nil, fmt.Errorf("SVSM's SEV metadata: %w", err)
	}
	start, err := im.SVSMStart()
	if err != nil {
		return nil, err
	}
	gpa := fw.GPA() - l.VarsSize - uint64(len(l.SVSM))
	c := newChain(digest{}, t)
	c.normal(fw.GPA(), l.Firmware, "firmware", "")
	c.normal(gpa, l.SVSM, "svsm", "")
	for i, s := range m.Sections {
		pt, err := QEMU.sectionType(s.Type)
		if err != nil {
			return nil, err
		}
		c.blank(pt, uint64(s.GPA), uint64(s.Size), fmt.Sprintf("section %d", i), s.Type.String())
	}
	eip := gpa + uint64(start)
	if uint64(start) >= uint64(len(l.SVSM)) || eip > 1<<32-1 {
		return nil, errors.New("SVSM starts outside of its image")
	}
	content := sha512.Sum384(svsmPage(uint32(eip), l.Signature, l.Features)[:])
	for i := range l.VCPUs {
		c.page(pageVMSA, vmsaGPA, &content, fmt.Sprintf("vcpu %d", i), "starts in the SVSM")
	}
	return digestOf(c.ld()), nil
}

// svsmPage is the state in which all processors start: 32-bit protected mode with flat segments. The published digests,
// which were compared with a launch, have the FPU's control word 0 though MXCSR is set.
func svsmPage(eip, signature uint32, features uint64) *[pageSize]byte {
	s := cpuState{
		eip: eip, features: features, rdx: signature, csAttr: 0x9b, ssAttr: 0x93, trAttr: 0x8b,
		pat: patReset, mxcsr: 0x1f80,
	}
	p := s.page()
	le := binary.LittleEndian
	flat := func(off int, selector, attr uint16) {
		le.PutUint16(p[off:], selector)
		le.PutUint16(p[off+2:], attr)
		le.PutUint32(p[off+4:], 0xffffffff)
		le.PutUint64(p[off+8:], 0)
	}
	for _, off := range []int{offES, offSS, offDS, offFS} {
		flat(off, 16, 0xc93)
	}
	flat(offCS, 8, 0xc9b)
	le.PutUint64(p[offCR0:], 0x11)
	le.PutUint64(p[offRIP:], uint64(eip))
	return p
}
