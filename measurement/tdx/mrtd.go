// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
)

const (
	pageSize   = 4096
	recordSize = 128 // of TDH.MEM.PAGE.ADD and TDH.MR.EXTEND (Intel TDX module specification, MRTD)
	chunkSize  = 256 // covered by one TDH.MR.EXTEND
)

// Order is the order in which a VMM adds and measures the pages of a section.
type Order uint8

// The known orders.
const (
	SinglePass Order = iota // page by page, as upstream KVM does
	TwoPass                 // all pages of a section are added, then all are measured (vendor kernels with QEMU 8)
)

// MRTD returns the measurement of a TD's build. It depends on the firmware alone, except for images
// that have the TD HOB's content measured: those need the HOB for their memory size (see HOB), which
// is otherwise ignored and may be nil.
func MRTD(firmware []byte, order Order, hob []byte, t *measurement.Trace) (measurement.Digest, error) {
	im, err := ovmf.Parse(firmware)
	if err != nil {
		return nil, fmt.Errorf("mrtd: %w", err)
	}
	sections, err := im.TDX()
	if err != nil {
		return nil, fmt.Errorf("mrtd: %w", err)
	}
	b := build{hash: sha512.New384(), trace: t}
	for i, s := range sections {
		if s.Attributes&ovmf.PageAug != 0 {
			continue
		}
		content, err := sectionContent(im, s, hob)
		if err != nil {
			return nil, fmt.Errorf("mrtd: section %d (%s): %w", i, s.Type, err)
		}
		b.section(fmt.Sprintf("section %d (%s)", i, s.Type), s, order, content)
	}
	d := measurement.Digest(b.hash.Sum(nil))
	t.Add(measurement.Step{Register: "mrtd", Source: "end", Kind: "FINALIZE", After: d})
	return d, nil
}

// sectionContent returns the bytes that are measured for a section, nil if its addresses count only.
func sectionContent(im *ovmf.Image, s ovmf.TDXSection, hob []byte) ([]byte, error) {
	if s.Attributes&ovmf.MRExtend == 0 {
		return nil, nil
	}
	switch s.Type {
	case ovmf.BFV, ovmf.CFV:
		return im.Raw(s), nil
	case ovmf.TDHOB:
		if hob == nil {
			return nil, errors.New("its content is measured, so the digest depends on the memory size, which is not given")
		}
		if uint64(len(hob)) > s.Size {
			return nil, fmt.Errorf("a HOB list of %d bytes does not fit", len(hob))
		}
		return append(append(make([]byte, 0, s.Size), hob...), make([]byte, s.Size-uint64(len(hob)))...), nil
	}
	return make([]byte, s.Size), nil // QEMU maps zeros
}

// build is the running hash of a TD's construction.
type build struct {
	hash  hash.Hash
	trace *measurement.Trace
}

func (b *build) section(source string, s ovmf.TDXSection, order Order, content []byte) {
	for off := uint64(0); off < s.Size; off += pageSize {
		b.add(source, s.GPA+off)
		if content != nil && order == SinglePass {
			b.extend(source, s.GPA+off, content[off:off+pageSize])
		}
	}
	if content == nil || order == SinglePass {
		return
	}
	for off := uint64(0); off < s.Size; off += pageSize {
		b.extend(source, s.GPA+off, content[off:off+pageSize])
	}
}

func (b *build) record(name string, gpa uint64) {
	var r [recordSize]byte
	copy(r[:], name)
	binary.LittleEndian.PutUint64(r[16:], gpa)
	b.hash.Write(r[:])
}

func (b *build) add(source string, gpa uint64) {
	b.record("MEM.PAGE.ADD", gpa)
	b.trace.Add(measurement.Step{Register: "mrtd", Source: source, Kind: "PAGE.ADD", GPA: gpa, Size: pageSize})
}

func (b *build) extend(source string, gpa uint64, page []byte) {
	for off := 0; off < pageSize; off += chunkSize {
		b.record("MR.EXTEND", gpa+uint64(off))
		b.hash.Write(page[off : off+chunkSize])
	}
	if b.trace != nil {
		content := sha512.Sum384(page)
		b.trace.Add(measurement.Step{
			Register: "mrtd", Source: source, Kind: "MR.EXTEND", GPA: gpa, Size: pageSize,
			Content: content[:],
		})
	}
}
