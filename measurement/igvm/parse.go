// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package igvm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of the structures behind variable headers.
const (
	sizePlatform   = 16
	sizePolicy     = 16
	sizeArea       = 16
	sizePage       = 24
	sizeInsert     = 16
	sizeContext    = 20
	sizeRequired   = 24
	sizeParameter  = 8
	sizeErrorRange = 16
	sizeIDBlock    = 8 + 48 + 16 + 16 + 4*4 + 2*(144+152)

	maxArea = 1 << 28
)

type parser struct {
	file      *File
	raw       []byte
	dataStart uint64 // where page data may begin
}

// next decodes one variable header and returns what follows it.
func (p *parser) next(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return nil, fmt.Errorf("%d bytes are left, too few for a header", len(b))
	}
	t, size := Type(le.Uint32(b)), uint64(le.Uint32(b[4:]))
	padded := (size + 7) &^ 7
	if headerSize+size > uint64(len(b)) {
		return nil, fmt.Errorf("%s of %d bytes ends after the headers", t, size)
	}
	if err := p.decode(t, b[headerSize:headerSize+size]); err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}
	return b[min(headerSize+padded, uint64(len(b))):], nil
}

func (p *parser) decode(t Type, b []byte) error {
	switch {
	case t&optional != 0:
		return nil
	case t == SupportedPlatform:
		return p.platform(b)
	case t == GuestPolicy:
		return p.policy(b)
	case t >= 0x101 && t <= 0x200:
		return errors.New("this initialisation is not supported; a digest could not be trusted")
	}
	d, err := p.directive(t, b)
	if err != nil {
		return err
	}
	if d.GPA%PageSize != 0 {
		return fmt.Errorf("address %#x is not that of a page", d.GPA)
	}
	p.file.Directives = append(p.file.Directives, d)
	return nil
}

func want(b []byte, size int) error {
	if len(b) != size {
		return fmt.Errorf("has %d bytes, not %d", len(b), size)
	}
	return nil
}

func (p *parser) platform(b []byte) error {
	if err := want(b, sizePlatform); err != nil {
		return err
	}
	if len(p.file.Directives) > 0 {
		return errors.New("comes after directives")
	}
	le := binary.LittleEndian
	n := Platform{
		Mask: le.Uint32(b), HighestVTL: b[4], Type: PlatformType(b[5]), Version: le.Uint16(b[6:]),
		SharedGPABoundary: le.Uint64(b[8:]),
	}
	if n.Mask == 0 || n.Mask&(n.Mask-1) != 0 {
		return fmt.Errorf("compatibility mask %#x is not a single bit", n.Mask)
	}
	for _, o := range p.file.Platforms {
		if o.Type == n.Type || o.Mask == n.Mask {
			return fmt.Errorf("%s with mask %#x collides with %s, mask %#x", n.Type, n.Mask, o.Type, o.Mask)
		}
	}
	p.file.Platforms = append(p.file.Platforms, n)
	return nil
}

func (p *parser) policy(b []byte) error {
	if err := want(b, sizePolicy); err != nil {
		return err
	}
	policy, mask := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
	snp, ok := p.file.HasPlatform(SEVSNP)
	if !ok || mask&snp != snp {
		return nil // for another platform
	}
	if p.file.HasPolicy {
		return errors.New("a second policy for SEV-SNP")
	}
	p.file.Policy, p.file.HasPolicy = policy, true
	return nil
}

func (p *parser) directive(t Type, b []byte) (d Directive, err error) {
	le := binary.LittleEndian
	d.Type = t
	switch t {
	case ParameterArea:
		if err = want(b, sizeArea); err == nil {
			d.Size, d.Index = le.Uint64(b), le.Uint32(b[8:])
			if d.Size == 0 || d.Size%PageSize != 0 || d.Size > maxArea {
				return d, fmt.Errorf("size %#x is not a number of pages up to %#x bytes", d.Size, maxArea)
			}
			d.Data, err = p.data(le.Uint32(b[12:]), d.Size)
		}
	case PageData:
		if err = want(b, sizePage); err == nil {
			d.GPA, d.Mask, d.Flags, d.DataType = le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[16:]), DataType(le.Uint16(b[20:]))
			d.Data, err = p.page(d, le.Uint32(b[12:]), le.Uint16(b[22:]))
		}
	case ParameterInsert:
		if err = want(b, sizeInsert); err == nil {
			d.GPA, d.Mask, d.Index = le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
		}
	case VPContext:
		if len(b) != sizeContext && len(b) != sizeContext+4 { // writers differ in whether padding counts
			return d, fmt.Errorf("has %d bytes, not %d", len(b), sizeContext)
		}
		d.GPA, d.Mask, d.VP = le.Uint64(b), le.Uint32(b[8:]), le.Uint16(b[16:])
		if d.Data, err = p.data(le.Uint32(b[12:]), PageSize); err == nil && d.Data == nil {
			err = errors.New("has no data")
		}
	case RequiredMemory:
		if err = want(b, sizeRequired); err == nil {
			d.GPA, d.Mask, d.Size, d.Flags = le.Uint64(b), le.Uint32(b[8:]), uint64(le.Uint32(b[12:])), le.Uint32(b[16:])
		}
	case ErrorRange:
		if err = want(b, sizeErrorRange); err == nil {
			d.GPA, d.Mask, d.Size = le.Uint64(b), le.Uint32(b[8:]), uint64(le.Uint32(b[12:]))
		}
	case VPCount, SRAT, MADT, MMIORanges, MemoryMap, CommandLine, SLIT, PPTT, DeviceTree, EnvironmentInfo:
		if err = want(b, sizeParameter); err == nil {
			d.Index, d.Offset = le.Uint32(b), le.Uint32(b[4:])
		}
	case SNPIDBlock:
		if err = want(b, sizeIDBlock); err == nil {
			d.Mask, d.Data = le.Uint32(b), b
		}
	default:
		err = errors.New("unknown type that a loader must not ignore")
	}
	return d, err
}

func (p *parser) page(d Directive, offset uint32, reserved uint16) ([]byte, error) {
	switch {
	case d.Flags&FlagLarge != 0:
		return nil, errors.New("2 MiB pages are not supported by the loaders that are modelled")
	case d.Flags&^(FlagLarge|FlagUnmeasured|FlagShared) != 0 || reserved != 0:
		return nil, fmt.Errorf("flags %#x or a reserved field are set that have no meaning", d.Flags)
	case d.DataType > CPUIDXFPage:
		return nil, fmt.Errorf("page data type %d is unknown", d.DataType)
	}
	return p.data(offset, PageSize)
}

// data returns the bytes at a file offset; offset 0 stands for no data.
func (p *parser) data(offset uint32, size uint64) ([]byte, error) {
	if offset == 0 {
		return nil, nil
	}
	start := uint64(offset)
	if start < p.dataStart || start+size > uint64(len(p.raw)) {
		return nil, fmt.Errorf("data %#x+%#x lies outside the file's data, %#x to %#x", start, size, p.dataStart, len(p.raw))
	}
	return p.raw[start : start+size : start+size], nil
}
