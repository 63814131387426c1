// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package igvm reads and writes Independent Guest Virtual Machine files: a launch as a list of pages
// and processor contexts that the VMM executes in order.
//
// A file is untrusted input: every offset is checked, data alias the file's bytes
// and nothing is allocated by an unchecked length. The digest of the file's launch depends on
// the loader, and package snp computes it; this package knows the format only (Microsoft's
// igvm_defs, format version 1; version 2 for x86-64).
package igvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// PageSize is the unit of all addresses and data.
const PageSize = 4096

const (
	magic         = "IGVM"
	fixedHeaderV1 = 24
	fixedHeaderV2 = 32
	headerSize    = 8 // of a variable header: u32 type, u32 length
	maxFile       = 1 << 31
)

// Type is the type of a variable header.
type Type uint32

// Types of variable headers that this package decodes.
const (
	SupportedPlatform Type = 0x001
	GuestPolicy       Type = 0x101
	ParameterArea     Type = 0x301
	PageData          Type = 0x302
	ParameterInsert   Type = 0x303
	VPContext         Type = 0x304
	RequiredMemory    Type = 0x305
	VPCount           Type = 0x307
	SRAT              Type = 0x308
	MADT              Type = 0x309
	MMIORanges        Type = 0x30a
	SNPIDBlock        Type = 0x30b
	MemoryMap         Type = 0x30c
	ErrorRange        Type = 0x30d
	CommandLine       Type = 0x30e
	SLIT              Type = 0x30f
	PPTT              Type = 0x310
	DeviceTree        Type = 0x312
	EnvironmentInfo   Type = 0x313

	// optional marks headers that a loader may ignore.
	optional Type = 1 << 31
)

var typeNames = map[Type]string{
	SupportedPlatform: "SUPPORTED_PLATFORM", GuestPolicy: "GUEST_POLICY", ParameterArea: "PARAMETER_AREA",
	PageData:        "PAGE_DATA",
	ParameterInsert: "PARAMETER_INSERT", VPContext: "VP_CONTEXT", RequiredMemory: "REQUIRED_MEMORY",
	VPCount: "VP_COUNT", SRAT: "SRAT",
	MADT: "MADT", MMIORanges: "MMIO_RANGES", SNPIDBlock: "SNP_ID_BLOCK", MemoryMap: "MEMORY_MAP",
	ErrorRange:  "ERROR_RANGE",
	CommandLine: "COMMAND_LINE", SLIT: "SLIT", PPTT: "PPTT", DeviceTree: "DEVICE_TREE",
	EnvironmentInfo: "ENVIRONMENT_INFO",
}

// String returns the type's name.
func (t Type) String() string {
	if n, ok := typeNames[t&^optional]; ok {
		return n
	}
	return fmt.Sprintf("header %#x", uint32(t))
}

// PlatformType is the kind of isolation a platform header stands for.
type PlatformType uint8

// Platform types.
const (
	Native PlatformType = 0
	VSM    PlatformType = 1
	SEVSNP PlatformType = 2
	TDX    PlatformType = 3
)

// String returns the platform's name.
func (p PlatformType) String() string {
	switch p {
	case Native:
		return "native"
	case VSM:
		return "vsm"
	case SEVSNP:
		return "sev-snp"
	case TDX:
		return "tdx"
	}
	return fmt.Sprintf("platform %d", uint8(p))
}

// Platform says which bit of compatibility masks stands for a platform.
type Platform struct {
	Mask              uint32
	HighestVTL        uint8
	Type              PlatformType
	Version           uint16
	SharedGPABoundary uint64
}

// DataType is the type of a PAGE_DATA page.
type DataType uint16

// Data types of pages.
const (
	NormalPage  DataType = 0
	SecretsPage DataType = 1
	CPUIDPage   DataType = 2
	CPUIDXFPage DataType = 3
)

// Flags of PAGE_DATA.
const (
	FlagLarge      uint32 = 1 << 0 // 2 MiB page
	FlagUnmeasured uint32 = 1 << 1
	FlagShared     uint32 = 1 << 2
)

// Directive is one step of the launch. Which fields mean something depends on its type.
type Directive struct {
	Type     Type
	Mask     uint32 // platforms it is for; 0 where the type has none: for all
	GPA      uint64
	Size     uint64 // bytes of a PARAMETER_AREA, REQUIRED_MEMORY or ERROR_RANGE
	Flags    uint32
	DataType DataType
	Index    uint32 // parameter area
	Offset   uint32 // of a parameter in its area
	VP       uint16
	Data     []byte // page, processor context, initial data of an area, raw ID block; nil: no data in the file
}

// File is a parsed file.
type File struct {
	Version    uint32
	Platforms  []Platform
	Policy     uint64 // of the SNP platform; 0 if the file has none
	HasPolicy  bool
	Directives []Directive
}

// Parse reads a file. The result aliases it.
func Parse(b []byte) (*File, error) {
	f, headers, start, err := parseFixed(b)
	if err != nil {
		return nil, fmt.Errorf("igvm file: %w", err)
	}
	p := parser{file: f, raw: b, dataStart: start}
	for n := 0; len(headers) > 0; n++ {
		rest, err := p.next(headers)
		if err != nil {
			return nil, fmt.Errorf("igvm file: variable header %d: %w", n, err)
		}
		headers = rest
	}
	if len(f.Platforms) == 0 {
		return nil, errors.New("igvm file: names no platform")
	}
	return f, nil
}

// parseFixed checks the fixed header and the checksum, and returns the variable headers.
func parseFixed(b []byte) (f *File, headers []byte, dataStart uint64, err error) {
	le := binary.LittleEndian
	if len(b) < fixedHeaderV1 || len(b) > maxFile {
		return nil, nil, 0, fmt.Errorf("has %d bytes, not between %d and %d", len(b), fixedHeaderV1, maxFile)
	}
	if string(b[:4]) != magic {
		return nil, nil, 0, fmt.Errorf("begins with %q, not %q", b[:4], magic)
	}
	f = &File{Version: le.Uint32(b[4:])}
	fixed := uint64(fixedHeaderV1)
	switch f.Version {
	case 1:
	case 2:
		fixed = fixedHeaderV2
		if len(b) < fixedHeaderV2 {
			return nil, nil, 0, errors.New("ends in its header")
		}
		if arch, page := le.Uint32(b[24:]), le.Uint32(b[28:]); arch != 0 || page != PageSize {
			return nil, nil, 0, fmt.Errorf("is for architecture %d with pages of %d bytes, not for x86-64 with %d", arch,
				page, PageSize)
		}
	default:
		return nil, nil, 0, fmt.Errorf("has format version %d, not 1 or 2", f.Version)
	}
	off, size, total := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:])), uint64(le.Uint32(b[16:]))
	switch {
	case total != uint64(len(b)):
		return nil, nil, 0, fmt.Errorf("says it has %d bytes, but has %d", total, len(b))
	case off < fixed || off%8 != 0:
		return nil, nil, 0, fmt.Errorf("variable headers at %#x, inside the fixed header or unaligned", off)
	case off+size > total:
		return nil, nil, 0, fmt.Errorf("variable headers %#x+%#x end after the file's %#x bytes", off, size, total)
	}
	head := append([]byte(nil), b[:fixed]...)
	clear(head[20:24])
	sum := crc32.Update(crc32.ChecksumIEEE(head), crc32.IEEETable, b[off:off+size])
	if want := le.Uint32(b[20:]); sum != want {
		return nil, nil, 0, fmt.Errorf("headers have checksum %#08x, the file says %#08x", sum, want)
	}
	return f, b[off : off+size], off + size, nil
}

// HasPlatform returns the mask of a platform.
func (f *File) HasPlatform(t PlatformType) (mask uint32, ok bool) {
	for _, p := range f.Platforms {
		if p.Type == t {
			return p.Mask, true
		}
	}
	return 0, false
}

// For returns the directives for a platform, in file order.
func (f *File) For(mask uint32) []Directive {
	out := make([]Directive, 0, len(f.Directives))
	for _, d := range f.Directives {
		if d.Mask == 0 || d.Mask&mask == mask {
			out = append(out, d)
		}
	}
	return out
}
