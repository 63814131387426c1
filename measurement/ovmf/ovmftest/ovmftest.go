// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ovmftest builds firmware images for tests: real tables at chosen places, with decoys
// around them. The images contain no code.
package ovmftest

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/coco-shim/coco/measurement/ovmf"
)

// Entry is an entry of the footer table.
type Entry struct {
	GUID string
	Data []byte
}

// GUIDs of the entries.
const (
	Footer      = "96b582de-1fb2-45f7-baea-a366c55a082d"
	ResetBlock  = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
	HashArea    = "7255371f-3a3b-4b04-927b-1da6efa8d454"
	SEVMetadata = "dc886566-984a-4798-a75e-5585a7bf67cc"
	TDXMetadata = "e47a6535-984a-4798-865e-4685a7bf8ec2"
	SVSMInfo    = "a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"
)

// Layout says what an image contains. The zero Layout with a size is an image of random bytes without a table.
type Layout struct {
	Size     int // multiple of 4 KiB
	Seed     uint64
	NoTable  bool
	EIP      uint32 // 0: no reset block
	HashBase uint32 // 0: no hash area
	HashSize uint32 // 0: 0x400
	SEV      []ovmf.Section
	TDX      []ovmf.TDXSection
	Extra    []Entry // come first in the walk from the footer, before the real ones
	Decoys   bool    // footer tables and metadata that nothing points at
}

// Sections is the section list of a current edk2 build.
func Sections() []ovmf.Section {
	return []ovmf.Section{
		{GPA: 0x800000, Size: 0x9000, Type: ovmf.SecMem},
		{GPA: 0x80a000, Size: 0x3000, Type: ovmf.SecMem},
		{GPA: 0x80d000, Size: 0x1000, Type: ovmf.Secrets},
		{GPA: 0x80e000, Size: 0x1000, Type: ovmf.CPUID},
		{GPA: 0x80f000, Size: 0x1000, Type: ovmf.SVSMCAA},
		{GPA: 0x811000, Size: 0xf000, Type: ovmf.SecMem},
		{GPA: 0x810000, Size: 0x1000, Type: ovmf.KernelHashes},
	}
}

// TDXSections is the section list of a current edk2 build with the given image size, the first
// 0x84000 bytes (or a quarter of small images) being variables.
func TDXSections(size int) []ovmf.TDXSection {
	cfv := uint32(0x84000)
	if size <= int(cfv) {
		cfv = uint32(size/4) &^ 4095
	}
	base := uint64(1<<32 - size)
	return []ovmf.TDXSection{
		{
			Offset: cfv, RawSize: uint32(size) - cfv, GPA: base + uint64(cfv), Size: uint64(uint32(size) - cfv), Type: ovmf.BFV,
			Attributes: ovmf.MRExtend,
		},
		{Offset: 0, RawSize: cfv, GPA: base, Size: uint64(cfv), Type: ovmf.CFV},
		{GPA: 0x810000, Size: 0x10000, Type: ovmf.TempMem},
		{GPA: 0x80b000, Size: 0x2000, Type: ovmf.TempMem},
		{GPA: 0x809000, Size: 0x2000, Type: ovmf.TDHOB},
		{GPA: 0x800000, Size: 0x6000, Type: ovmf.TempMem},
	}
}

// Build returns the image of a layout.
func Build(l Layout) []byte {
	r := rand.New(rand.NewPCG(l.Seed, 1))
	fw := make([]byte, l.Size)
	for i := 0; i < len(fw); i += 1 + r.IntN(64) {
		fw[i] = byte(r.Uint32())
	}
	end := len(fw) - 32 // of the table
	at := end - 1024    // of the metadata, growing downwards
	var entries []Entry
	entries = append(entries, l.Extra...)
	u32 := func(v ...uint32) []byte {
		var b []byte
		for _, x := range v {
			b = binary.LittleEndian.AppendUint32(b, x)
		}
		return b
	}
	if l.EIP != 0 {
		entries = append(entries, Entry{ResetBlock, u32(l.EIP)})
	}
	if l.HashBase != 0 {
		size := l.HashSize
		if size == 0 {
			size = 0x400
		}
		entries = append(entries, Entry{HashArea, u32(l.HashBase, size)})
	}
	place := func(guid string, meta []byte) {
		if l.Decoys {
			at -= len(meta)
			copy(fw[at:], meta[:16])
		}
		at -= len(meta)
		copy(fw[at:], meta)
		entries = append(entries, Entry{guid, u32(uint32(len(fw) - at))})
	}
	if l.SEV != nil {
		place(SEVMetadata, EncodeSEV(l.SEV))
	}
	if l.TDX != nil {
		place(TDXMetadata, EncodeTDX(l.TDX))
	}
	r.Shuffle(len(entries)-len(l.Extra), func(i, j int) {
		i, j = i+len(l.Extra), j+len(l.Extra)
		entries[i], entries[j] = entries[j], entries[i]
	})
	if !l.NoTable {
		table := Table(entries)
		copy(fw[end-len(table):], table)
		if l.Decoys {
			copy(fw[at-len(table)-64:], table) // a whole table where nobody looks
		}
	} else {
		clear(fw[end-18 : end])
	}
	return fw
}

// Table encodes a footer table with its footer; the first entry lies next to the footer.
func Table(entries []Entry) []byte {
	out := encodeEntry(Footer, nil, 0)
	for _, e := range entries {
		out = append(encodeEntry(e.GUID, e.Data, 18+len(e.Data)), out...)
	}
	binary.LittleEndian.PutUint16(out[len(out)-18:], uint16(len(out)))
	return out
}

func encodeEntry(guid string, data []byte, size int) []byte {
	g, err := ovmf.ParseGUID(guid)
	if err != nil {
		panic(err) // a constant of a test
	}
	out := append([]byte(nil), data...)
	out = binary.LittleEndian.AppendUint16(out, uint16(size))
	return append(out, g[:]...)
}

// EncodeSEV encodes SEV metadata.
func EncodeSEV(sections []ovmf.Section) []byte {
	le := binary.LittleEndian
	b := append([]byte("ASEV"), make([]byte, 12)...)
	le.PutUint32(b[4:], uint32(16+12*len(sections)))
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], uint32(len(sections)))
	for _, s := range sections {
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, s.GPA), s.Size), uint32(s.Type))
	}
	return b
}

// EncodeTDX encodes TDX metadata.
func EncodeTDX(sections []ovmf.TDXSection) []byte {
	le := binary.LittleEndian
	b := append([]byte("TDVF"), make([]byte, 12)...)
	le.PutUint32(b[4:], uint32(16+32*len(sections)))
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], uint32(len(sections)))
	for _, s := range sections {
		b = le.AppendUint32(le.AppendUint32(b, s.Offset), s.RawSize)
		b = le.AppendUint64(le.AppendUint64(b, s.GPA), s.Size)
		b = le.AppendUint32(le.AppendUint32(b, uint32(s.Type)), s.Attributes)
	}
	return b
}
