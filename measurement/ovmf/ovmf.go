// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ovmf reads an OVMF firmware image's descriptions of itself: the GUIDed table at its end,
// and the metadata for SEV and TDX that the table points at.
//
// An image is untrusted input, so every length and offset is checked before it is
// used and nothing is allocated by an unchecked length. QEMU's own reader silently takes a malformed table
// for "no table"; here it is an error, because a digest over a misread image is
// worse than none. Parse reads the table; the metadata for SEV and for TDX are read on demand, since an
// image may carry either unused. Packages snp and tdx measure.
package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	pageSize = 4096

	// The table's footer entry ends 32 bytes before the end of the image; these last bytes hold the
	// reset vector.
	afterTable  = 32
	entryHeader = 2 + 16 // u16 length, GUID; they follow the entry's data

	// QEMU reads at most this much of an image through -bios; TDVF images are far smaller.
	maxImage = 256 << 20

	// QEMU loads images in this unit. Smaller ones, of whole pages, are taken for fragments: the last
	// page of an image stands for it in published vectors.
	biosUnit = 64 << 10

	fourGiB = 1 << 32
)

// ErrAbsent marks that an image lacks a table entry that was asked for.
var ErrAbsent = errors.New("not in the firmware's table")

// Entry is one entry of the footer table.
type Entry struct {
	GUID GUID
	Data []byte // aliases the image
}

// Image is a parsed firmware image. It aliases the bytes it was parsed from, which must not change.
type Image struct {
	data    []byte
	entries []Entry // in the order of the walk: from the footer downwards
}

// Parse reads the footer table of an image. An image without a table is valid (plain SEV measures any
// blob); one with a broken table is not.
func Parse(fw []byte) (*Image, error) {
	switch n := len(fw); {
	case n == 0:
		return nil, errors.New("firmware is empty")
	case n%pageSize != 0 || n > maxImage:
		return nil, fmt.Errorf("firmware has %d bytes, not a multiple of %d up to %d", n, pageSize, maxImage)
	case n > biosUnit && n%biosUnit != 0:
		return nil, fmt.Errorf("firmware has %d bytes, not a multiple of 64 KiB, which -bios demands", n)
	}
	return table(fw)
}

// ParseModule reads the table of an image that is not loaded by -bios, and so has whole pages only: an SVSM, and the
// firmware that it starts.
func ParseModule(b []byte) (*Image, error) {
	if n := len(b); n == 0 || n%pageSize != 0 || n > maxImage {
		return nil, fmt.Errorf("image has %d bytes, not a multiple of %d up to %d", n, pageSize, maxImage)
	}
	return table(b)
}

func table(fw []byte) (*Image, error) {
	im := &Image{data: fw}
	if err := im.walk(); err != nil {
		return nil, fmt.Errorf("firmware table: %w", err)
	}
	return im, nil
}

// walk reads the table from its footer down to its start. The first entry of a GUID counts, as in QEMU.
func (im *Image) walk() error {
	end := len(im.data) - afterTable
	if GUID(im.data[end-16:end]) != guidFooter {
		return nil
	}
	foot := end - entryHeader
	total := int(binary.LittleEndian.Uint16(im.data[foot:]))
	if total < entryHeader {
		return fmt.Errorf("footer says the table has %d bytes, less than the footer itself", total)
	}
	rest := total - entryHeader
	if rest > foot {
		return fmt.Errorf("footer says the table has %d bytes, more than the image has", total)
	}
	for table := im.data[foot-rest : foot]; len(table) >= entryHeader; {
		g := GUID(table[len(table)-16:])
		size := int(binary.LittleEndian.Uint16(table[len(table)-entryHeader:]))
		switch {
		case size < entryHeader:
			return fmt.Errorf("entry %s has length %d, less than its header of %d", g, size, entryHeader)
		case size > len(table):
			return fmt.Errorf("entry %s has length %d and starts before the table, which has %d bytes left", g, size, len(table))
		case g == guidFooter:
			return fmt.Errorf("a second table footer lies inside the table, %d bytes from its start", len(table))
		}
		im.entries = append(im.entries, Entry{GUID: g, Data: table[len(table)-size : len(table)-entryHeader]})
		table = table[:len(table)-size]
	}
	return nil
}

// Data returns the image's bytes. They must not be changed.
func (im *Image) Data() []byte { return im.data }

// GPA returns the guest physical address of the image's first byte: it ends at 4 GiB.
func (im *Image) GPA() uint64 { return fourGiB - uint64(len(im.data)) }

// Entries returns all entries of the footer table, from the footer downwards.
func (im *Image) Entries() []Entry { return im.entries }

// Find returns the first entry with the given GUID.
func (im *Image) Find(g GUID) (Entry, bool) {
	for _, e := range im.entries {
		if e.GUID == g {
			return e, true
		}
	}
	return Entry{}, false
}

// ResetEIP returns the address at which application processors start (SEV-ES and SNP). Without
// a table, an old-style reset block at the table's place counts, as in QEMU.
func (im *Image) ResetEIP() (uint32, error) {
	data, err := im.resetBlock()
	if err != nil {
		return 0, err
	}
	if len(data) < 4 {
		return 0, fmt.Errorf("SEV-ES reset block has %d bytes of data, not 4", len(data))
	}
	eip := binary.LittleEndian.Uint32(data)
	if eip == 0 {
		return 0, errors.New("SEV-ES reset block gives address 0, which QEMU refuses")
	}
	return eip, nil
}

func (im *Image) resetBlock() ([]byte, error) {
	if e, ok := im.Find(guidResetBlock); ok {
		return e.Data, nil
	}
	end := len(im.data) - afterTable
	if GUID(im.data[end-16:end]) != guidResetBlock {
		return nil, fmt.Errorf("SEV-ES reset block (application processors' start address): %w", ErrAbsent)
	}
	size := int(binary.LittleEndian.Uint16(im.data[end-entryHeader:]))
	if size < entryHeader || size > end {
		return nil, fmt.Errorf("SEV-ES reset block has length %d, not between %d and %d", size, entryHeader, end)
	}
	return im.data[end-size : end-entryHeader], nil
}

// SVSMStart returns where, from its beginning, the image of an SVSM starts to run.
func (im *Image) SVSMStart() (uint32, error) {
	e, ok := im.Find(guidSVSMInfo)
	if !ok {
		return 0, fmt.Errorf("SVSM info: %w", ErrAbsent)
	}
	if len(e.Data) < 4 {
		return 0, fmt.Errorf("SVSM info has %d bytes of data, not 4", len(e.Data))
	}
	return binary.LittleEndian.Uint32(e.Data), nil
}

// Area is a range of guest memory that the firmware reserves for its VMM.
type Area struct {
	Base uint32
	Size uint32
}

// HashArea returns where the firmware expects the hashes of kernel, initrd and command line.
// A base of 0 means that it expects none, which is reported as ErrAbsent.
func (im *Image) HashArea() (Area, error) {
	e, ok := im.Find(guidHashArea)
	if !ok {
		return Area{}, fmt.Errorf("kernel-hash area: %w", ErrAbsent)
	}
	if len(e.Data) < 8 {
		return Area{}, fmt.Errorf("kernel-hash area has %d bytes of data, not 8", len(e.Data))
	}
	a := Area{Base: binary.LittleEndian.Uint32(e.Data), Size: binary.LittleEndian.Uint32(e.Data[4:])}
	if a.Base == 0 {
		return Area{}, fmt.Errorf("kernel-hash area has base 0: this firmware cannot check a kernel: %w", ErrAbsent)
	}
	return a, nil
}

// LaunchProblem returns why QEMU would not load the image with -bios, or nil: a fragment can be
// measured, but not launched.
func (im *Image) LaunchProblem() error {
	if len(im.data)%biosUnit != 0 {
		return fmt.Errorf("firmware has %d bytes, not a multiple of 64 KiB, which -bios demands", len(im.data))
	}
	return nil
}
