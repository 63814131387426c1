// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// SectionType is the type of a section of SEV metadata (edk2, OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
type SectionType uint32

// Section types that edk2 defines.
const (
	SecMem       SectionType = 1    // memory that must be validated before the guest starts
	Secrets      SectionType = 2    // the page the AMD firmware fills with the guest's keys
	CPUID        SectionType = 3    // the page of checked CPUID values
	SVSMCAA      SectionType = 4    // calling area of an SVSM
	KernelHashes SectionType = 0x10 // page for the table of package kernelhashes
)

// String returns the section type's name.
func (t SectionType) String() string {
	switch t {
	case SecMem:
		return "SEC_MEM"
	case Secrets:
		return "SECRETS"
	case CPUID:
		return "CPUID"
	case SVSMCAA:
		return "SVSM_CAA"
	case KernelHashes:
		return "KERNEL_HASHES"
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// Section is one range of guest memory that the VMM must prepare before launch.
type Section struct {
	GPA  uint32
	Size uint32
	Type SectionType
}

// SEVMetadata is the list of sections, in the order in which they are measured.
type SEVMetadata struct {
	Sections []Section
}

const (
	sevHeader  = 16 // "ASEV", u32 length, u32 version, u32 count
	sevSection = 12
	sevVersion = 1
)

// SEV returns the image's SEV metadata, or ErrAbsent.
func (im *Image) SEV() (*SEVMetadata, error) {
	e, ok := im.Find(guidSEVMetadata)
	if !ok {
		return nil, fmt.Errorf("SEV metadata (needed for SNP): %w", ErrAbsent)
	}
	m, err := im.parseSEV(e.Data)
	if err != nil {
		return nil, fmt.Errorf("firmware's SEV metadata: %w", err)
	}
	return m, nil
}

func (im *Image) parseSEV(entry []byte) (*SEVMetadata, error) {
	b, err := im.fromEnd(entry, sevHeader)
	if err != nil {
		return nil, err
	}
	if string(b[:4]) != "ASEV" {
		return nil, fmt.Errorf("signature is %q, not \"ASEV\"", b[:4])
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != sevVersion {
		return nil, fmt.Errorf("version is %d, not %d", v, sevVersion)
	}
	size, count := uint64(binary.LittleEndian.Uint32(b[4:])), uint64(binary.LittleEndian.Uint32(b[12:]))
	if size > uint64(len(b)) {
		return nil, fmt.Errorf("length %d runs past the end of the image, %d bytes away", size, len(b))
	}
	if need := sevHeader + count*sevSection; need > size {
		return nil, fmt.Errorf("length %d is too small for %d sections (%d bytes)", size, count, need)
	}
	m := &SEVMetadata{Sections: make([]Section, 0, count)}
	for i := range count {
		s := b[sevHeader+i*sevSection:]
		m.Sections = append(m.Sections, Section{
			GPA:  binary.LittleEndian.Uint32(s),
			Size: binary.LittleEndian.Uint32(s[4:]),
			Type: SectionType(binary.LittleEndian.Uint32(s[8:])),
		})
	}
	return m, nil
}

// fromEnd resolves a table entry that holds an offset counted back from the end of the image.
// The result reaches to the end of the image and has at least min bytes.
func (im *Image) fromEnd(entry []byte, minimum int) ([]byte, error) {
	if len(entry) < 4 {
		return nil, fmt.Errorf("table entry has %d bytes of data, not 4", len(entry))
	}
	off := int64(binary.LittleEndian.Uint32(entry))
	if off > int64(len(im.data)) {
		return nil, fmt.Errorf("offset %#x from the end lies before the image, which has %#x bytes", off, len(im.data))
	}
	if off < int64(minimum) {
		return nil, fmt.Errorf("offset %#x from the end leaves no room for a header of %d bytes", off, minimum)
	}
	return im.data[int64(len(im.data))-off:], nil
}

// maxSectionBytes bounds the work that a hostile image can cause: real ones cover some 200 KiB.
const maxSectionBytes = 1 << 30

// Check returns why an SNP launch with these sections cannot succeed, or nil: sizes and addresses
// that are not pages, and sections that overlap (a page can be added once only). A firmware size of
// 0 leaves out the comparison with the firmware's own range.
func (m *SEVMetadata) Check(firmwareSize int) error {
	spans := make([]span, 0, len(m.Sections)+1)
	if firmwareSize > 0 {
		spans = append(spans, span{name: "the firmware itself", start: fourGiB - uint64(firmwareSize), end: fourGiB})
	}
	total := uint64(0)
	for i, s := range m.Sections {
		name := fmt.Sprintf("section %d (%s at %#x, %#x bytes)", i, s.Type, s.GPA, s.Size)
		if s.Size == 0 {
			return fmt.Errorf("%s is empty, which QEMU refuses", name)
		}
		if s.GPA%pageSize != 0 || s.Size%pageSize != 0 {
			return fmt.Errorf("%s does not consist of whole pages", name)
		}
		spans = append(spans, span{name: name, start: uint64(s.GPA), end: uint64(s.GPA) + uint64(s.Size)})
		if spans[len(spans)-1].end > fourGiB {
			return fmt.Errorf("%s reaches beyond 4 GiB", name)
		}
		if total += uint64(s.Size); total > maxSectionBytes {
			return errors.New("sections cover more than 1 GiB")
		}
	}
	return overlap(spans)
}

// span is a named range of guest memory.
type span struct {
	name       string
	start, end uint64
}

// overlap names two spans that share a page, if there are any. It reorders its argument.
func overlap(spans []span) error {
	// slices.SortStableFunc costs 4 kB of the shim for this type.
	sort.SliceStable(spans, func(a, b int) bool { return spans[a].start < spans[b].start })
	for i := 1; i < len(spans); i++ {
		if a, b := spans[i-1], spans[i]; b.start < a.end {
			return fmt.Errorf("%s overlaps %s; a page can be launched only once", b.name, a.name)
		}
	}
	return nil
}
