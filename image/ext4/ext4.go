// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ext4 makes empty ext4 file systems for data that does not outlive its pod: no journal, no
// backup copies, no lost+found. It writes six blocks, however large the device is: inode tables
// and bitmaps of all but the first group are marked as not initialised, and the kernel makes them
// when it needs them (mount with noinit_itable, or it writes all of them in the background).
//
// It replaces mke2fs and its libraries in the guest, 1.3 MB of memory that every pod would pay for.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
)

// The layout, fixed but for the number of groups.
const (
	blockSize      = 4096
	groupBlocks    = 8 * blockSize // what one bitmap block covers
	groupInodes    = 8192          // one for 16 KiB
	inodeSize      = 256
	inodesPerBlock = blockSize / inodeSize
	descSize       = 32
	firstInode     = 11 // those before it are reserved
	rootInode      = 2
	minBlocks      = 256 // 1 MiB
	// The group descriptors follow the superblock within the first group and leave it room.
	maxGroups = 16 << 10 // 2 TiB
)

// Features (Documentation/filesystems/ext4/super.rst).
const (
	compat       = 0x8 | 0x20 | 0x200             // ext_attr, dir_index, sparse_super2 (without backups)
	incompat     = 0x2 | 0x40                     // filetype, extents
	roCompat     = 0x2 | 0x8 | 0x10 | 0x20 | 0x40 // large_file, huge_file, gdt_csum, dir_nlink, extra_isize
	magic        = 0xef53
	uninitInodes = 0x1 // flags of a group: its bitmaps are not there yet
	uninitBlocks = 0x2
)

// Options describe a file system.
type Options struct {
	Bytes uint64 // size of the device; the file system may end a little before
	// ID and Seed are random: the identity, and what names are hashed with.
	ID, Seed [16]byte
	Mode     uint32 // of the root directory: permission and set-id bits
	Group    uint32 // of the root directory; its owner is root
	Time     uint32 // of its making
}

// Options for mount(2) that belong to a file system of this package.
const MountOptions = "noinit_itable,nodelalloc,discard"

var le = binary.LittleEndian

// layout is what follows from the size.
type layout struct {
	blocks, groups, inodes uint32 // inodes: of one group
	descBlocks, table      uint32 // blocks of the descriptors and of one inode table
}

func plan(bytes uint64) (layout, error) {
	blocks := bytes / blockSize
	if blocks < minBlocks {
		return layout{}, fmt.Errorf("ext4: %d bytes are less than %d", bytes, minBlocks*blockSize)
	}
	if blocks > maxGroups*groupBlocks {
		blocks = maxGroups * groupBlocks
	}
	l := layout{blocks: uint32(blocks), inodes: groupInodes} // bounded above
	if blocks < groupBlocks {
		l.inodes = (l.blocks/4 + 15) &^ 15
	}
	l.table = l.inodes / inodesPerBlock
	// A last group that has no room for its own tables is left away.
	if rest := l.blocks % groupBlocks; l.blocks > groupBlocks && rest < l.table+64 {
		l.blocks -= rest
	}
	l.groups = (l.blocks + groupBlocks - 1) / groupBlocks
	l.descBlocks = (l.groups*descSize + blockSize - 1) / blockSize
	return l, nil
}

// start is the first block of a group that is not the superblock's or its descriptors'.
func (l layout) start(group uint32) uint32 {
	if group == 0 {
		return 1 + l.descBlocks
	}
	return group * groupBlocks
}

func (l layout) size(group uint32) uint32 { return min(l.blocks-group*groupBlocks, groupBlocks) }

// used counts the blocks of a group that are taken: its own tables, and in the first group what is
// before them and the root directory.
func (l layout) used(group uint32) uint32 {
	if group == 0 {
		return l.start(0) + 2 + l.table + 1
	}
	return 2 + l.table
}

// FormatDevice writes an empty file system to the device with a path.
func FormatDevice(path string, o Options) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("make a file system: %w", err)
	}
	if err := errors.Join(Format(f, o), f.Close()); err != nil {
		return fmt.Errorf("make a file system: %w", err)
	}
	return nil
}

// Format writes an empty file system to a device.
func Format(dev io.WriterAt, o Options) error {
	l, err := plan(o.Bytes)
	if err != nil {
		return err
	}
	desc, free := l.descriptors(o.ID)
	first := l.start(0)
	type write struct {
		block uint32
		data  []byte
	}
	writes := []write{
		{1, desc},
		{first, bitmap(l.used(0), l.size(0))},
		{first + 1, bitmap(firstInode-1, l.inodes)},
		{first + 2, rootDirInode(o, first+2+l.table)},
		{first + 2 + l.table, rootDir()},
	}
	if last := l.groups - 1; last > 0 {
		writes = append(writes, write{l.start(last), bitmap(l.used(last), l.size(last))})
	}
	// The superblock comes last: without it there is no file system.
	for _, w := range append(writes, write{0, l.superblock(o, free)}) {
		if _, err := dev.WriteAt(w.data, int64(w.block)*blockSize); err != nil {
			return fmt.Errorf("ext4: write block %d: %w", w.block, err)
		}
	}
	return nil
}

// bitmap has the first used bits set, and those that do not exist.
func bitmap(used, size uint32) []byte {
	b := make([]byte, blockSize)
	for i := range uint32(groupBlocks) {
		if i < used || i >= size {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return b
}

// descriptors describes the groups, and counts the free blocks.
func (l layout) descriptors(id [16]byte) (out []byte, free uint64) {
	out = make([]byte, l.descBlocks*blockSize)
	for g := range l.groups {
		d, at := out[g*descSize:][:descSize], l.start(g)
		le.PutUint32(d[0:], at)
		le.PutUint32(d[4:], at+1)
		le.PutUint32(d[8:], at+2)
		blocks, inodes, flags, dirs := l.size(g)-l.used(g), l.inodes, uint16(uninitInodes|uninitBlocks), uint16(0)
		switch g {
		case 0:
			inodes, flags, dirs = l.inodes-(firstInode-1), 0, 1
		case l.groups - 1:
			flags = uninitInodes // its bitmap says where the device ends
		}
		le.PutUint16(d[12:], uint16(blocks)) //nolint:gosec // at most groupBlocks
		le.PutUint16(d[14:], uint16(inodes)) //nolint:gosec // at most groupInodes
		le.PutUint16(d[16:], dirs)
		le.PutUint16(d[18:], flags)
		le.PutUint16(d[28:], uint16(inodes)) //nolint:gosec // those were never used
		sum := crc16(crc16(0xffff, id[:]), le.AppendUint32(nil, g))
		le.PutUint16(d[30:], crc16(sum, d[:30]))
		free += uint64(blocks)
	}
	return out, free
}

// crc16 is the kernel's: polynomial 0x8005, reflected.
func crc16(crc uint16, data []byte) uint16 {
	for _, b := range data {
		crc ^= uint16(b)
		for range 8 {
			if crc, b = crc>>1, byte(crc&1); b != 0 {
				crc ^= bits.Reverse16(0x8005)
			}
		}
	}
	return crc
}

// superblock is the first block, in which the superblock is at 1024.
func (l layout) superblock(o Options, free uint64) []byte {
	block := make([]byte, blockSize)
	s := block[1024:]
	for at, v := range map[int]uint32{
		0: l.inodes * l.groups, 4: l.blocks, 12: uint32(free), 16: l.inodes*l.groups - (firstInode - 1), //nolint:gosec // below blocks
		24: 2, 28: 2, // log2 of block and cluster size in KiB
		32: groupBlocks, 36: groupBlocks, 40: l.inodes,
		48: o.Time, 64: o.Time, 264: o.Time,
		76: 1, 84: firstInode, 92: compat, 96: incompat, 100: roCompat,
		352: 2, // names are hashed as unsigned characters
	} {
		le.PutUint32(s[at:], v)
	}
	for at, v := range map[int]uint16{
		54: 0xffff, 56: magic, 58: 1, 60: 1, // no limit of mounts; clean; go on after errors
		88: inodeSize, 348: 32, 350: 32, // extra space that inodes need, and want
	} {
		le.PutUint16(s[at:], v)
	}
	copy(s[104:120], o.ID[:])
	copy(s[236:252], o.Seed[:])
	s[252] = 1 // half MD4
	return block
}

// rootDirInode is the first block of the first inode table.
func rootDirInode(o Options, dir uint32) []byte {
	block := make([]byte, blockSize)
	n := block[(rootInode-1)*inodeSize:][:inodeSize]
	le.PutUint16(n[0:], uint16(0o040000|o.Mode&0o7777)) //nolint:gosec // 16 bits
	le.PutUint32(n[4:], blockSize)
	for _, at := range []int{8, 12, 16, 144} { // accessed, changed, modified, made
		le.PutUint32(n[at:], o.Time)
	}
	le.PutUint16(n[24:], uint16(o.Group))      //nolint:gosec // the lower half
	le.PutUint16(n[122:], uint16(o.Group>>16)) // the upper half
	le.PutUint16(n[26:], 2)                    // links
	le.PutUint32(n[28:], blockSize/512)
	le.PutUint32(n[32:], 0x80000) // its blocks are in extents:
	le.PutUint16(n[40:], 0xf30a)  // one
	le.PutUint16(n[42:], 1)       //
	le.PutUint16(n[44:], 4)       // of at most four,
	le.PutUint16(n[56:], 1)       // of one block
	le.PutUint32(n[60:], dir)
	le.PutUint16(n[128:], 32) // extra space in use
	return block
}

// rootDir has nothing but itself and its parent.
func rootDir() []byte {
	b := make([]byte, blockSize)
	for _, e := range []struct {
		at, length int
		name       string
	}{{0, 12, "."}, {12, blockSize - 12, ".."}} {
		le.PutUint32(b[e.at:], rootInode)
		le.PutUint16(b[e.at+4:], uint16(e.length))  //nolint:gosec // at most a block
		b[e.at+6], b[e.at+7] = byte(len(e.name)), 2 //nolint:gosec // one or two; 2 is a directory
		copy(b[e.at+8:], e.name)
	}
	return b
}
