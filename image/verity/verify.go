// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verity

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// CorruptError says which block does not have the digest that the root hash stands for.
type CorruptError struct {
	RootHash string
	Level    int // -1: a data block; else a hash block, 0 being the lowest level
	Block    uint64
}

func (e *CorruptError) Error() string {
	if e.Level < 0 {
		return fmt.Sprintf("layer %s: data block %d is corrupted", e.RootHash, e.Block)
	}
	return fmt.Sprintf("layer %s: hash block %d of level %d is corrupted", e.RootHash, e.Block, e.Level)
}

// Verify reads the whole device and checks it against the root hash, top down: a block is only
// believed once its parent is. It needs no memory beyond a few buffers.
func Verify(ctx context.Context, r io.ReaderAt, p Params) error {
	if err := p.Validate(); err != nil {
		return err
	}
	v := &verifier{r: r, p: p, levels: levels(p.DataBlocks), h: newHasher(p.Salt)}
	return v.check(ctx, len(v.levels)-1, 0, p.RootHash[:])
}

// VerifyTop checks only the block right under the root hash: that tree and root hash belong together.
func VerifyTop(r io.ReaderAt, p Params) error {
	if err := p.Validate(); err != nil {
		return err
	}
	v := &verifier{r: r, p: p, levels: levels(p.DataBlocks), h: newHasher(p.Salt)}
	_, err := v.hashBlock(len(v.levels)-1, 0, p.RootHash[:])
	return err
}

type verifier struct {
	r      io.ReaderAt
	p      Params
	levels []level
	h      *hasher
	data   []byte
}

// check verifies block b of a level and everything below it.
func (v *verifier) check(ctx context.Context, lvl int, b uint64, want []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hashes, err := v.hashBlock(lvl, b, want)
	if err != nil || lvl < 0 {
		return err
	}
	below := v.p.DataBlocks
	if lvl > 0 {
		below = v.levels[lvl-1].blocks
	}
	first := b * perBlock
	count := min(perBlock, below-first)
	if lvl == 0 {
		return v.dataBlocks(first, count, hashes)
	}
	for i := range count {
		if err := v.check(ctx, lvl-1, first+i, hashes[i*HashSize:(i+1)*HashSize]); err != nil {
			return err
		}
	}
	return nil
}

// hashBlock reads one block, a data block at level -1, and compares its digest.
func (v *verifier) hashBlock(lvl int, b uint64, want []byte) ([]byte, error) {
	off := b * BlockSize
	if lvl >= 0 {
		off += v.p.HashOffset + v.levels[lvl].offset
	}
	block := make([]byte, BlockSize)
	if _, err := v.r.ReadAt(block, int64(off)); err != nil { //nolint:gosec // a wrong place is an error
		return nil, fmt.Errorf("read layer %s at %d: %w", v.p.Hex(), off, err)
	}
	return block, v.compare(lvl, b, block, want)
}

func (v *verifier) dataBlocks(first, count uint64, hashes []byte) error {
	if v.data == nil {
		v.data = make([]byte, chunkSize)
	}
	data := v.data[:count*BlockSize]
	if _, err := v.r.ReadAt(data, int64(first*BlockSize)); err != nil { //nolint:gosec // likewise
		return fmt.Errorf("read layer %s at %d: %w", v.p.Hex(), first*BlockSize, err)
	}
	for i := range count {
		if err := v.compare(-1, first+i, data[i*BlockSize:(i+1)*BlockSize], hashes[i*HashSize:(i+1)*HashSize]); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) compare(lvl int, b uint64, block, want []byte) error {
	if bytes.Equal(v.h.append(v.h.buf[:0], block), want) {
		return nil
	}
	return &CorruptError{RootHash: v.p.Hex(), Level: lvl, Block: b}
}
