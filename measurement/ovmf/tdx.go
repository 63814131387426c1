// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// TDXType is the type of a section of TDX metadata (Intel TDX Virtual Firmware Design Guide, 11.2).
type TDXType uint32

// Section types that QEMU accepts.
const (
	BFV     TDXType = 0 // boot firmware volume: code
	CFV     TDXType = 1 // configuration firmware volume: variables
	TDHOB   TDXType = 2 // memory for the hand-off blocks that the VMM writes
	TempMem TDXType = 3 // memory for heap, stack, mailbox
)

// String returns the section type's name.
func (t TDXType) String() string {
	switch t {
	case BFV:
		return "BFV"
	case CFV:
		return "CFV"
	case TDHOB:
		return "TD_HOB"
	case TempMem:
		return "TEMP_MEM"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Attributes of a TDX section.
const (
	MRExtend uint32 = 1 << 0 // the content is measured too, not only the page's address
	PageAug  uint32 = 1 << 1 // the page is added later and not measured at all
)

// TDXSection is one range of a TD's initial memory.
type TDXSection struct {
	Offset     uint32 // of the raw data in the image
	RawSize    uint32
	GPA        uint64
	Size       uint64 // in memory
	Type       TDXType
	Attributes uint32
}

const (
	tdxHeader  = 16 // "TDVF", u32 length, u32 version, u32 count
	tdxSection = 32
	tdxVersion = 1
	// maxTDXBytes bounds the work that a hostile image can cause: real ones cover some 5 MiB.
	maxTDXBytes = 1 << 30
)

// TDX returns the image's TDX metadata, or ErrAbsent. Sections are checked as QEMU checks them, and
// beyond: raw data lies within the image and sections do not overlap.
func (im *Image) TDX() ([]TDXSection, error) {
	e, ok := im.Find(guidTDXMetadata)
	if !ok {
		return nil, fmt.Errorf("TDX metadata: %w", ErrAbsent)
	}
	s, err := im.parseTDX(e.Data)
	if err != nil {
		return nil, fmt.Errorf("firmware's TDX metadata: %w", err)
	}
	return s, nil
}

func (im *Image) parseTDX(entry []byte) ([]TDXSection, error) {
	b, err := im.fromEnd(entry, tdxHeader)
	if err != nil {
		return nil, err
	}
	if string(b[:4]) != "TDVF" {
		return nil, fmt.Errorf("signature is %q, not \"TDVF\"", b[:4])
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != tdxVersion {
		return nil, fmt.Errorf("version is %d, not %d", v, tdxVersion)
	}
	size, count := uint64(binary.LittleEndian.Uint32(b[4:])), uint64(binary.LittleEndian.Uint32(b[12:]))
	if need := tdxHeader + count*tdxSection; need != size {
		return nil, fmt.Errorf("length %d does not fit %d sections (%d bytes)", size, count, need)
	}
	if size > uint64(len(b)) {
		return nil, fmt.Errorf("length %d runs past the end of the image, %d bytes away", size, len(b))
	}
	out := make([]TDXSection, 0, count)
	for i := range count {
		s := b[tdxHeader+i*tdxSection:]
		out = append(out, TDXSection{
			Offset:     binary.LittleEndian.Uint32(s),
			RawSize:    binary.LittleEndian.Uint32(s[4:]),
			GPA:        binary.LittleEndian.Uint64(s[8:]),
			Size:       binary.LittleEndian.Uint64(s[16:]),
			Type:       TDXType(binary.LittleEndian.Uint32(s[24:])),
			Attributes: binary.LittleEndian.Uint32(s[28:]),
		})
	}
	return out, im.checkTDX(out)
}

func (im *Image) checkTDX(sections []TDXSection) error {
	spans := make([]span, 0, len(sections))
	count := map[TDXType]int{}
	total := uint64(0)
	for i, s := range sections {
		name := fmt.Sprintf("section %d (%s at %#x)", i, s.Type, s.GPA)
		if err := im.checkTDXSection(s); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if total += s.Size; total > maxTDXBytes {
			return errors.New("sections cover more than 1 GiB")
		}
		count[s.Type]++
		spans = append(spans, span{name: name, start: s.GPA, end: s.GPA + s.Size})
	}
	if count[TDHOB] != 1 {
		return fmt.Errorf("%d TD_HOB sections, not one", count[TDHOB])
	}
	if count[BFV] == 0 {
		return errors.New("no BFV section, so no code to run")
	}
	return overlap(spans)
}

func (im *Image) checkTDXSection(s TDXSection) error {
	switch {
	case s.Size == 0 || s.Size > maxTDXBytes:
		return fmt.Errorf("memory size %#x is not between a page and 1 GiB", s.Size)
	case s.GPA%pageSize != 0 || s.Size%pageSize != 0:
		return fmt.Errorf("range %#x+%#x does not consist of whole pages", s.GPA, s.Size)
	case s.GPA > 1<<52-s.Size:
		return errors.New("range reaches beyond the physical address space")
	}
	switch s.Type {
	case BFV, CFV:
		if uint64(s.RawSize) != s.Size {
			return fmt.Errorf("raw size %#x differs from memory size %#x", s.RawSize, s.Size)
		}
		if uint64(s.Offset)+uint64(s.RawSize) > uint64(len(im.data)) {
			return fmt.Errorf("raw data %#x+%#x lies outside the image of %#x bytes", s.Offset, s.RawSize, len(im.data))
		}
	case TDHOB, TempMem:
		if s.RawSize != 0 {
			return fmt.Errorf("has %#x bytes of raw data where none are allowed", s.RawSize)
		}
	default:
		return errors.New("unknown type, which QEMU refuses")
	}
	return nil
}

// Raw returns the bytes of a section that has raw data, nil for others.
func (im *Image) Raw(s TDXSection) []byte {
	if s.Type != BFV && s.Type != CFV {
		return nil
	}
	return im.data[s.Offset : uint64(s.Offset)+uint64(s.RawSize)]
}
