// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bzimagetest makes files for tests that have a kernel's headers and nothing else.
package bzimagetest

import "encoding/binary"

// Kernel is the least that passes for a kernel of the given release: setup header, EFI headers and one section. The
// seed tells kernels apart.
func Kernel(release, seed string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x1000)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], 0x8664)
	le.PutUint16(b[0x46:], 1)   // sections
	le.PutUint16(b[0x54:], 160) // optional header, six directories
	opt := b[0x58:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[60:], 0x800)
	le.PutUint32(opt[108:], 6)
	le.PutUint32(opt[160+16:], 0x800)
	le.PutUint32(opt[160+20:], 0x800)

	b[0x1f1] = 3 // sectors of setup
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint16(b[0x20e:], 0x100)
	b[0x211] = 1
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 3)
	copy(b[0x300:], release+" (somebody@somewhere) #1 SMP")
	copy(b[0x900:], seed)
	return b
}
