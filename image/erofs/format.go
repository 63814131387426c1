// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// BlockSize is the only block size that images of this package have.
const BlockSize = 4096

// On-disk constants, as in the kernel's fs/erofs/erofs_fs.h (Linux 5.4 and later).
const (
	superOffset    = 1024
	superMagic     = 0xE0F5E1E2
	blockBits      = 12
	slotBits       = 5 // inodes are addressed in slots of 32 bytes: "nid"
	inodeSize      = 64
	direntSize     = 12
	maxName        = 255
	compatSBChksum = 0x1

	layoutPlain  = 0 // all data in whole blocks, contiguous
	layoutInline = 2 // whole blocks contiguous, the tail right after the inode

	inodeExtended = 1 // bit 0 of i_format; bits 1-3 hold the layout

	xattrHeaderSize = 12
	xattrEntrySize  = 4
	maxXattrArea    = xattrHeaderSize + xattrEntrySize*(1<<16-2)
)

// Directory entry types of EROFS.
const (
	ftRegular = 1 + iota
	ftDirectory
	ftCharDevice
	ftBlockDevice
	ftFIFO
	ftSocket
	ftSymlink
)

// st_mode type bits, the same on every Linux architecture.
const (
	sIFMT   = 0o170000
	sIFIFO  = 0o010000
	sIFCHR  = 0o020000
	sIFDIR  = 0o040000
	sIFBLK  = 0o060000
	sIFREG  = 0o100000
	sIFLNK  = 0o120000
	sIFSOCK = 0o140000
)

var le = binary.LittleEndian

// fileType is the directory entry type that belongs to a mode.
func fileType(mode uint32) byte {
	switch mode & sIFMT {
	case sIFREG:
		return ftRegular
	case sIFDIR:
		return ftDirectory
	case sIFCHR:
		return ftCharDevice
	case sIFBLK:
		return ftBlockDevice
	case sIFIFO:
		return ftFIFO
	case sIFLNK:
		return ftSymlink
	}
	return 0
}

// encodeDev packs a device number as the kernel's new_encode_dev does.
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^uint32(0xff)<<12
}

// superblock renders block 0: zeros, the superblock at offset 1024, zeros. The build time and the
// UUID are always zero: nothing but the content decides the bytes.
func superblock(inodes uint64, blocks uint32, rootNID uint16) []byte {
	b := make([]byte, BlockSize)
	s := b[superOffset:]
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatSBChksum)
	s[12] = blockBits
	le.PutUint16(s[14:], rootNID)
	le.PutUint64(s[16:], inodes)
	le.PutUint32(s[36:], blocks)
	// The kernel's crc32c starts with all ones and does not invert the result.
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// appendInode appends the extended (64 byte) on-disk inode of n. Extended inodes only: the compact
// ones have no time of their own.
func appendInode(b []byte, n *node, ino uint32) []byte {
	b = le.AppendUint16(b, inodeExtended|uint16(n.layout)<<1)
	b = le.AppendUint16(b, xattrCount(n.xattrs))
	b = le.AppendUint16(b, uint16(n.mode)) //nolint:gosec // 16 bits
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, n.size)
	switch n.mode & sIFMT {
	case sIFCHR, sIFBLK:
		b = le.AppendUint32(b, n.rdev)
	default:
		b = le.AppendUint32(b, n.startBlock)
	}
	b = le.AppendUint32(b, ino)
	b = le.AppendUint32(b, n.uid)
	b = le.AppendUint32(b, n.gid)
	b = le.AppendUint64(b, uint64(n.mtime)) //nolint:gosec // two's complement
	b = le.AppendUint32(b, n.nsec)
	b = le.AppendUint32(b, n.nlink)
	return append(b, make([]byte, 16)...)
}
