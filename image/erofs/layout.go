// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"math"
)

// The image: block 0 with the superblock; the inode area, where each inode is followed by its
// attributes and, when small, by its content; blocks of directories and long symbolic
// links; blocks of regular files. The root's inode is the first one.

// layOut decides where everything goes.
func (t *Tree) layOut() error {
	off := uint64(BlockSize)
	for _, n := range t.nodes {
		if n.isDir() {
			n.size = direntBlocks(n, nil)
		}
		fixed := inodeSize + xattrArea(n.xattrs)
		tail := inlineTail(n, fixed)
		n.layout = layoutPlain
		if tail > 0 {
			n.layout = layoutInline
		}
		n.offset = placeInode(off, uint64(fixed+tail)) //nolint:gosec // a few blocks at most
		off = n.offset + uint64(fixed+tail)            //nolint:gosec // likewise
	}
	t.metaEnd = off
	t.blocks = blocksOf(off)
	for _, n := range t.nodes {
		if !n.isReg() {
			t.reserve(n)
		}
	}
	for _, n := range t.nodes {
		if n.isReg() {
			t.reserve(n)
		}
	}
	if t.blocks > math.MaxUint32 {
		return fmt.Errorf("layer of %d GiB is larger than EROFS can address", t.blocks>>18)
	}
	return nil
}

// placeInode finds room for an inode at or after off: aligned to slots, and in one block if it fits.
func placeInode(off, size uint64) uint64 {
	off = align(off, 1<<slotBits)
	if used := off % BlockSize; used != 0 && used+size > BlockSize {
		return align(off, BlockSize)
	}
	return off
}

// inlineTail is how many bytes of n's data follow its inode.
func inlineTail(n *node, fixed int) int {
	var tail uint64
	switch n.mode & sIFMT {
	case sIFDIR:
		tail = n.size % BlockSize
	case sIFLNK:
		tail = n.size
	case sIFREG:
		if n.size <= inlineMax {
			tail = n.size
		}
	}
	if uint64(fixed)+tail > BlockSize { //nolint:gosec // a length
		return 0
	}
	return int(tail)
}

// reserve gives n the blocks that its data needs.
func (t *Tree) reserve(n *node) {
	count := n.bodyBlocks()
	if count == 0 {
		return
	}
	n.startBlock = uint32(t.blocks) //nolint:gosec // checked by layOut before anything is written
	t.blocks += count
}

// bodyBlocks is how many blocks n has apart from an inlined tail.
func (n *node) bodyBlocks() uint64 {
	if n.layout == layoutPlain {
		return blocksOf(n.size)
	}
	return n.size / BlockSize
}

// nid is the inode's number: its place in units of 32 bytes.
func (n *node) nid() uint64 { return n.offset >> slotBits }

func blocksOf(size uint64) uint64 { return (size + BlockSize - 1) / BlockSize }
func align(n, to uint64) uint64   { return (n + to - 1) &^ (to - 1) }
