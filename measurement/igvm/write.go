// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package igvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// snpMask is the compatibility mask of the single platform of files that are written here.
const snpMask = 1

// KVMVMSAGPA is the address of the processor context that Cloud Hypervisor expects on KVM.
const KVMVMSAGPA = 0x0000_ffff_ffff_f000

// Writer makes files for SEV-SNP. Pages are launched in the order in which they are added. The same
// calls give the same bytes. The zero Writer is empty; errors are kept and returned by Bytes.
type Writer struct {
	Policy            uint64 // of the launch; must be given
	SharedGPABoundary uint64 // 0 under KVM

	directives []Directive
	err        error
}

func (w *Writer) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *Writer) add(d Directive) {
	if d.GPA%PageSize != 0 {
		w.fail("%s at %#x is not on a page", d.Type, d.GPA)
	}
	d.Mask = snpMask
	w.directives = append(w.directives, d)
}

// Data adds measured bytes, padded with zeros to whole pages.
func (w *Writer) Data(gpa uint64, b []byte) {
	for len(b) > 0 {
		n := min(PageSize, len(b))
		page := b[:n]
		if n < PageSize {
			page = append(append(make([]byte, 0, PageSize), b...), make([]byte, PageSize-n)...)
		}
		w.add(Directive{Type: PageData, GPA: gpa, Data: page})
		gpa, b = gpa+PageSize, b[n:]
	}
}

// Zero adds pages without data.
func (w *Writer) Zero(gpa, size uint64) {
	if size%PageSize != 0 {
		w.fail("%#x bytes of zeros at %#x are not whole pages", size, gpa)
		return
	}
	for off := uint64(0); off < size; off += PageSize {
		w.add(Directive{Type: PageData, GPA: gpa + off})
	}
}

// Secrets adds the page that the AMD firmware fills with the guest's keys.
func (w *Writer) Secrets(gpa uint64) {
	w.add(Directive{Type: PageData, GPA: gpa, DataType: SecretsPage})
}

// CPUID adds the page of CPUID values, which the loader fills.
func (w *Writer) CPUID(gpa uint64) { w.add(Directive{Type: PageData, GPA: gpa, DataType: CPUIDPage}) }

// Parameters adds an area at gpa that the loader fills with its memory map, and with its number
// of processors and command line where the offsets are not negative. It is not measured.
func (w *Writer) Parameters(index uint32, gpa, size uint64, memoryMap, vpCount, cmdline int) {
	if size == 0 || size%PageSize != 0 || size > maxArea {
		w.fail("parameter area %d of %#x bytes is not whole pages", index, size)
		return
	}
	w.directives = append(w.directives, Directive{Type: ParameterArea, Index: index, Size: size})
	for _, p := range []struct {
		t  Type
		at int
	}{{MemoryMap, memoryMap}, {VPCount, vpCount}, {CommandLine, cmdline}} {
		if p.at >= 0 {
			w.directives = append(w.directives, Directive{Type: p.t, Index: index, Offset: uint32(p.at)}) //nolint:gosec // in the parameter area
		}
	}
	w.add(Directive{Type: ParameterInsert, GPA: gpa, Index: index})
}

// Context adds the state in which a processor starts: a save-area page.
func (w *Writer) Context(vp uint16, gpa uint64, vmsa []byte) {
	if len(vmsa) != PageSize {
		w.fail("context of processor %d has %d bytes, not a page", vp, len(vmsa))
		return
	}
	w.add(Directive{Type: VPContext, GPA: gpa, VP: vp, Data: vmsa})
}

// IDBlock adds an ID block with its authentication, in the forms of package idblock.
func (w *Writer) IDBlock(block, auth []byte) {
	if len(block) != 96 || len(auth) != 4096 {
		w.fail("id block of %d and authentication of %d bytes, not 96 and 4096", len(block), len(auth))
		return
	}
	b := make([]byte, sizeIDBlock)
	le := binary.LittleEndian
	le.PutUint32(b, snpMask)
	if le.Uint32(auth[4:]) != 0 {
		b[4] = 1 // author key enabled
	}
	copy(b[8:], block[:80])          // digest, family, image
	copy(b[88:], block[80:88])       // version, guest SVN
	copy(b[96:], auth[:8])           // algorithms
	copy(b[104:], auth[0x40:][:144]) // r and s
	key := func(dst, src []byte) {
		copy(dst, src[:4]) // curve; then a reserved word
		copy(dst[8:], src[4:][:144])
	}
	key(b[248:], auth[0x240:])
	copy(b[400:], auth[0x680:][:144])
	key(b[544:], auth[0x880:])
	w.directives = append(w.directives, Directive{Type: SNPIDBlock, Mask: snpMask, Data: b})
}

// Bytes returns the file.
func (w *Writer) Bytes() ([]byte, error) {
	if w.err == nil && w.Policy == 0 {
		w.err = errors.New("no policy is given")
	}
	if w.err != nil {
		return nil, fmt.Errorf("write igvm file: %w", w.err)
	}
	size := fixedHeaderV1 + headerSize + sizePlatform + headerSize + sizePolicy
	for _, d := range w.directives {
		size += headerSize + encodedSize(d.Type)
	}
	le := binary.LittleEndian
	data := make([]byte, 0)
	head := make([]byte, fixedHeaderV1, size)
	platform := le.AppendUint32(nil, snpMask)
	platform = append(platform, 0, byte(SEVSNP), 1, 0)
	head = appendHeader(head, SupportedPlatform, le.AppendUint64(platform, w.SharedGPABoundary))
	head = appendHeader(head, GuestPolicy, le.AppendUint64(le.AppendUint64(nil, w.Policy), snpMask))
	for _, d := range w.directives {
		offset := uint32(0)
		if d.Data != nil && d.Type != SNPIDBlock {
			if uint64(size)+uint64(len(data))+PageSize > maxFile {
				return nil, fmt.Errorf("write igvm file: more than %d bytes", maxFile)
			}
			offset = uint32(size + len(data)) //nolint:gosec // at most maxFile
			data = append(data, d.Data...)
		}
		head = appendHeader(head, d.Type, encode(d, offset))
	}
	copy(head, magic)
	le.PutUint32(head[4:], 1)
	le.PutUint32(head[8:], fixedHeaderV1)
	le.PutUint32(head[12:], uint32(len(head)-fixedHeaderV1)) //nolint:gosec // below size
	le.PutUint32(head[16:], uint32(len(head)+len(data)))     //nolint:gosec // at most maxFile
	le.PutUint32(head[20:], crc32.ChecksumIEEE(head))
	return append(head, data...), nil
}

// encodedSize is the size of a directive's structure with its padding.
func encodedSize(t Type) int {
	switch t {
	case ParameterArea:
		return sizeArea
	case PageData:
		return sizePage
	case ParameterInsert:
		return sizeInsert
	case VPContext:
		return sizeContext + 4
	case SNPIDBlock:
		return sizeIDBlock
	}
	return sizeParameter
}

func encode(d Directive, offset uint32) []byte {
	le := binary.LittleEndian
	switch d.Type {
	case ParameterArea:
		return le.AppendUint32(le.AppendUint32(le.AppendUint64(nil, d.Size), d.Index), offset)
	case PageData:
		b := le.AppendUint32(le.AppendUint32(le.AppendUint64(nil, d.GPA), d.Mask), offset)
		return le.AppendUint32(le.AppendUint32(b, d.Flags), uint32(d.DataType))
	case ParameterInsert:
		return le.AppendUint32(le.AppendUint32(le.AppendUint64(nil, d.GPA), d.Mask), d.Index)
	case VPContext:
		b := le.AppendUint32(le.AppendUint32(le.AppendUint64(nil, d.GPA), d.Mask), offset)
		return le.AppendUint32(b, uint32(d.VP))
	case SNPIDBlock:
		return d.Data
	}
	return le.AppendUint32(le.AppendUint32(nil, d.Index), d.Offset)
}

// appendHeader appends a variable header, padded to 8 bytes.
func appendHeader(dst []byte, t Type, b []byte) []byte {
	le := binary.LittleEndian
	dst = append(le.AppendUint32(le.AppendUint32(dst, uint32(t)), uint32(len(b))), b...) //nolint:gosec // a few hundred bytes
	return append(dst, make([]byte, (8-len(b)%8)%8)...)
}
