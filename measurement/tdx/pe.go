// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// Offsets in PE/COFF images (Microsoft PE/COFF specification).
const (
	offNewHeader   = 0x3c
	coffSize       = 20
	peMagic32      = 0x10b
	peMagic64      = 0x20b
	offChecksum    = 64 // in the optional header, as are the next three
	offHeadersSize = 60
	offDirs32      = 96
	offDirs64      = 112
	securityDir    = 4
	sectionSize    = 40
	maxSections    = 96
)

// peLayout is what Authenticode needs to know of an image.
type peLayout struct {
	checksum  int // offset of the field
	security  int // offset of the directory's entry; 0 if the image has none
	headers   int // size of all headers
	certSize  int
	sections  [][2]int // offset and size of raw data, by offset
	sumHashed int
}

// Authenticode writes to a hash what identifies a PE image by edk2's rules (TpmMeasurePeImage):
// headers without checksum and certificate entry, sections by file offset, and what follows them but
// for the certificates. The image is not padded.
func Authenticode(image []byte, h hash.Hash) error {
	l, err := readPE(image)
	if err != nil {
		return fmt.Errorf("pe image: %w", err)
	}
	h.Write(image[:l.checksum])
	if l.security == 0 {
		h.Write(image[l.checksum+4 : l.headers])
	} else {
		h.Write(image[l.checksum+4 : l.security])
		h.Write(image[l.security+8 : l.headers])
	}
	for _, s := range l.sections {
		h.Write(image[s[0] : s[0]+s[1]])
	}
	if len(image) > l.sumHashed {
		if len(image) < l.sumHashed+l.certSize {
			return errors.New("pe image: the certificates are larger than what follows the sections")
		}
		h.Write(image[l.sumHashed : len(image)-l.certSize])
	}
	return nil
}

func readPE(b []byte) (*peLayout, error) {
	le := binary.LittleEndian
	if len(b) < 0x40 || b[0] != 'M' || b[1] != 'Z' {
		return nil, errors.New("begins without MZ: the kernel has no EFI stub, or is compressed as a whole")
	}
	pe := int(le.Uint32(b[offNewHeader:]))
	if pe < 0x40 || pe > len(b)-4-coffSize-offDirs64 {
		return nil, fmt.Errorf("PE header at %#x lies outside of the image", pe)
	}
	if string(b[pe:pe+4]) != "PE\x00\x00" {
		return nil, errors.New("has no PE signature")
	}
	coff := b[pe+4:]
	count, optSize := int(le.Uint16(coff[2:])), int(le.Uint16(coff[16:]))
	opt := pe + 4 + coffSize
	if count > maxSections || opt+optSize+count*sectionSize > len(b) {
		return nil, fmt.Errorf("has %d sections and an optional header of %d bytes, which do not fit", count, optSize)
	}
	l := &peLayout{checksum: opt + offChecksum, headers: int(le.Uint32(b[opt+offHeadersSize:]))}
	if err := l.directories(b, opt, optSize); err != nil {
		return nil, err
	}
	if l.headers < opt+optSize+count*sectionSize || l.headers > len(b) {
		return nil, fmt.Errorf("headers of %#x bytes do not hold the section table or exceed the image", l.headers)
	}
	return l, l.readSections(b, opt+optSize, count)
}

// directories finds the entry of the certificates.
func (l *peLayout) directories(b []byte, opt, optSize int) error {
	le := binary.LittleEndian
	dirs := offDirs64
	switch m := le.Uint16(b[opt:]); m {
	case peMagic64:
	case peMagic32:
		dirs = offDirs32
	default:
		return fmt.Errorf("optional header has magic %#x", m)
	}
	if optSize < dirs {
		return fmt.Errorf("optional header of %d bytes ends before its directories", optSize)
	}
	count := int(le.Uint32(b[opt+dirs-4:]))
	if count <= securityDir {
		return nil
	}
	at := dirs + securityDir*8
	if optSize < at+8 {
		return fmt.Errorf("optional header of %d bytes ends in its %d directories", optSize, count)
	}
	l.security = opt + at
	l.certSize = int(le.Uint32(b[l.security+4:]))
	return nil
}

func (l *peLayout) readSections(b []byte, table, count int) error {
	le := binary.LittleEndian
	l.sumHashed = l.headers
	for i := range count {
		s := b[table+i*sectionSize:]
		size, off := int(le.Uint32(s[16:])), int(le.Uint32(s[20:]))
		if size == 0 {
			continue
		}
		if off+size > len(b) {
			return fmt.Errorf("section %d, %#x+%#x, ends outside of the image", i, off, size)
		}
		l.sections = append(l.sections, [2]int{off, size})
		l.sumHashed += size
	}
	slices.SortStableFunc(l.sections, func(a, b [2]int) int { return cmp.Compare(a[0], b[0]) })
	return nil
}
