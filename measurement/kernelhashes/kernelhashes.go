// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kernelhashes builds the table that OVMF compares with the kernel, initrd and command
// line it is given in a direct boot. It reads no files and knows nothing of launch digests: callers
// hash the files, this package lays the hashes out as QEMU does (struct PaddedSevHashTable).
package kernelhashes

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
)

const (
	entrySize  = 16 + 2 + sha256.Size
	tableSize  = 16 + 2 + 3*entrySize // 168
	pageSize   = 4096
	copyBuffer = 256 << 10
)

// TableSize is the length of the table with its padding to a multiple of 16 bytes; it is also the
// least size of the firmware's hash area that QEMU accepts.
const TableSize = (tableSize + 15) &^ 15

// GUIDs of the table and its entries, in the byte order in which they lie in memory.
var (
	// 9438d606-4f22-4cc9-b479-a793d411fd21
	guidTable = [16]byte{0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c, 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21}
	// 97d02dd8-bd20-4c94-aa78-e7714d36ab2a
	guidCmdline = [16]byte{0xd8, 0x2d, 0xd0, 0x97, 0x20, 0xbd, 0x94, 0x4c, 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a}
	// 44baf731-3a2f-4bd7-9af1-41e29169781d
	guidInitrd = [16]byte{0x31, 0xf7, 0xba, 0x44, 0x2f, 0x3a, 0xd7, 0x4b, 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d}
	// 4de79437-abd2-427f-b835-d5b172d2045b
	guidKernel = [16]byte{0x37, 0x94, 0xe7, 0x4d, 0xd2, 0xab, 0x7f, 0x42, 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b}
)

// Hashes are the SHA-256 values of what a direct boot hands to the firmware.
type Hashes struct {
	Kernel  [sha256.Size]byte
	Initrd  [sha256.Size]byte
	Cmdline [sha256.Size]byte
}

// New returns the hashes for a kernel and an initrd that were hashed already. A nil initrd means
// that there is none, which is measured as an empty file. Every byte of the command line counts:
// nothing is trimmed, and the terminating NUL is hashed too.
func New(kernel [sha256.Size]byte, initrd *[sha256.Size]byte, cmdline string) Hashes {
	h := Hashes{Kernel: kernel, Initrd: sha256.Sum256(nil), Cmdline: Cmdline(cmdline)}
	if initrd != nil {
		h.Initrd = *initrd
	}
	return h
}

// Cmdline returns the hash of a kernel command line as QEMU passes it: its bytes and one NUL.
func Cmdline(s string) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(s))
	h.Write([]byte{0})
	return [sha256.Size]byte(h.Sum(nil))
}

// Read hashes a kernel or initrd from a stream in constant memory.
func Read(r io.Reader) ([sha256.Size]byte, error) {
	h := sha256.New()
	// The wrappers hide ReaderFrom and WriterTo, so that the buffer bounds the memory.
	_, err := io.CopyBuffer(struct{ hash.Hash }{h}, struct{ io.Reader }{r}, make([]byte, copyBuffer))
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("hash boot file: %w", err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// Table returns the hash table with its padding, as QEMU writes it into guest memory.
func (h Hashes) Table() [TableSize]byte {
	var t [TableSize]byte
	put := func(at int, guid [16]byte, size int) {
		copy(t[at:], guid[:])
		binary.LittleEndian.PutUint16(t[at+16:], uint16(size)) //nolint:gosec // of this table
	}
	put(0, guidTable, tableSize)
	for i, e := range []struct {
		guid [16]byte
		hash [sha256.Size]byte
	}{{guidCmdline, h.Cmdline}, {guidInitrd, h.Initrd}, {guidKernel, h.Kernel}} {
		at := 18 + i*entrySize
		put(at, e.guid, entrySize)
		copy(t[at+18:], e.hash[:])
	}
	return t
}

// Area returns size bytes of zeros with the table at the given offset: the content of the
// firmware's hash section. It refuses a table that does not fit.
func (h Hashes) Area(offset, size uint32) ([]byte, error) {
	if size > 16*pageSize {
		return nil, fmt.Errorf("hash section of %d bytes is larger than %d pages", size, 16)
	}
	if uint64(offset)+TableSize > uint64(size) {
		return nil, fmt.Errorf("hash table of %d bytes at offset %#x does not fit in a section of %#x bytes",
			TableSize, offset, size)
	}
	b := make([]byte, size)
	t := h.Table()
	copy(b[offset:], t[:])
	return b, nil
}
