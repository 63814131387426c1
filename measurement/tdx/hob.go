// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/coco-shim/coco/measurement/ovmf"
)

// Hand-off blocks as QEMU writes them (hw/i386/tdvf-hob.c; UEFI PI specification, volume 3).
const (
	hobHandoff   = 1
	hobResource  = 3
	hobEnd       = 0xffff
	handoffSize  = 56
	resourceSize = 48
	endSize      = 8
	hobVersion   = 9

	resourceMemory     = 0 // added before launch
	resourceUnaccepted = 7
	resourceAttributes = 7 // present, initialised, tested

	// q35 keeps RAM below lowSmall if all fits there, else below lowLarge, the rest above 4 GiB.
	lowSmall = 0xb0000000
	lowLarge = 0x80000000
	fourGiB  = 1 << 32
	maxRAM   = 1 << 46
)

// below4G returns how much of the memory q35 places below 4 GiB.
func below4G(memory uint64) uint64 {
	if memory >= lowSmall {
		return lowLarge
	}
	return memory
}

// span is a range of guest memory.
type span struct {
	start, end uint64
	added      bool // private memory that is part of the build
}

// HOB returns the hand-off blocks that QEMU's q35 machine writes for a memory size, up to and
// including the end block.
func HOB(sections []ovmf.TDXSection, memory uint64) ([]byte, error) {
	if memory == 0 || memory%pageSize != 0 || memory > maxRAM {
		return nil, fmt.Errorf("td hob: memory of %d bytes is not a number of pages up to 64 TiB", memory)
	}
	spans := []span{{end: below4G(memory)}}
	if above := memory - below4G(memory); above > 0 {
		spans = append(spans, span{start: fourGiB, end: fourGiB + above})
	}
	var base, room uint64
	for _, s := range sections {
		if s.Type != ovmf.TDHOB && s.Type != ovmf.TempMem {
			continue
		}
		if s.Type == ovmf.TDHOB {
			base, room = s.GPA, s.Size
		}
		var err error
		if spans, err = carve(spans, s.GPA, s.GPA+s.Size); err != nil {
			return nil, fmt.Errorf("td hob: firmware's section %s at %#x: %w", s.Type, s.GPA, err)
		}
	}
	if room == 0 {
		return nil, errors.New("td hob: firmware has no TD_HOB section")
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	size := uint64(handoffSize + len(spans)*resourceSize + endSize)
	if size > room {
		return nil, fmt.Errorf("td hob: %d bytes do not fit in the firmware's %d", size, room)
	}
	return encodeHOB(spans, base+size), nil
}

// carve marks a range as added; it must lie in memory that was not added before.
func carve(spans []span, start, end uint64) ([]span, error) {
	for i, s := range spans {
		if s.added || start < s.start || end > s.end {
			continue
		}
		out := slices.Delete(slices.Clone(spans), i, i+1)
		out = append(out, span{start: start, end: end, added: true})
		if s.start < start {
			out = append(out, span{start: s.start, end: start})
		}
		if end < s.end {
			out = append(out, span{start: end, end: s.end})
		}
		return out, nil
	}
	return nil, fmt.Errorf("%#x to %#x is not unused memory", start, end)
}

func encodeHOB(spans []span, end uint64) []byte {
	le := binary.LittleEndian
	header := func(b []byte, kind, size uint16) []byte {
		return le.AppendUint32(le.AppendUint16(le.AppendUint16(b, kind), size), 0)
	}
	b := header(nil, hobHandoff, handoffSize)
	b = le.AppendUint32(le.AppendUint32(b, hobVersion), 0)
	b = append(b, make([]byte, 32)...) // memory tops and bottoms, ignored
	b = le.AppendUint64(b, end)
	for _, s := range spans {
		kind := uint32(resourceUnaccepted)
		if s.added {
			kind = resourceMemory
		}
		b = header(b, hobResource, resourceSize)
		b = append(b, make([]byte, 16)...) // owner
		b = le.AppendUint32(le.AppendUint32(b, kind), resourceAttributes)
		b = le.AppendUint64(le.AppendUint64(b, s.start), s.end-s.start)
	}
	return header(b, hobEnd, endSize)
}
