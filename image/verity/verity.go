// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package verity makes and checks the hash trees of dm-verity: SHA-256 over blocks of 4096 bytes,
// version 1, no superblock, bit for bit the tree of `veritysetup format --no-superblock`.
//
// A Writer hashes while the data is being written, in parallel and with a few fixed buffers, and
// puts the tree right behind the data. Params holds the values that are needed to open the result.
// They are all that a root hash stands for, and they become agent storage options and a
// device-mapper table. Package verity/dm talks to the kernel.
package verity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/api/contract"
)

const (
	// BlockSize is the size of data blocks and of hash blocks.
	BlockSize = 4096
	// HashSize is the size of a SHA-256 digest.
	HashSize = 32

	perBlock  = BlockSize / HashSize
	sector    = 512
	maxBlocks = 1 << 32 // 16 TiB of data, as many as EROFS can address
	maxSalt   = 256
)

// Salt is the salt of all layers. It is fixed, so that equal content has equal root hashes.
var Salt = make([]byte, HashSize)

// Params describes data followed or accompanied by its hash tree on one device.
type Params struct {
	RootHash   [HashSize]byte
	Salt       []byte
	DataBlocks uint64
	HashOffset uint64 // of the hash tree, in bytes from the start of the device
}

// Hex is the root hash as text.
func (p Params) Hex() string { return hex.EncodeToString(p.RootHash[:]) }

// Size is the number of bytes that data and tree take on the device.
func (p Params) Size() uint64 { return p.HashOffset + TreeSize(p.DataBlocks) }

// Options renders p as driver options of an agent storage.
func (p Params) Options() []string {
	return []string{
		contract.VerityRootHash + "=" + p.Hex(),
		contract.VeritySalt + "=" + hex.EncodeToString(p.Salt),
		contract.VerityDataBlocks + "=" + strconv.FormatUint(p.DataBlocks, 10),
		contract.VerityHashOffset + "=" + strconv.FormatUint(p.HashOffset, 10),
	}
}

// ParseOptions reads what Options wrote. ok is false when there is no coco.verity option at all; as
// soon as there is one, all four must be there exactly once and be well-formed.
func ParseOptions(options []string) (p Params, ok bool, err error) {
	seen := map[string]bool{}
	for _, o := range options {
		if !strings.HasPrefix(o, contract.VerityPrefix) {
			continue
		}
		name, value, _ := strings.Cut(o, "=")
		if seen[name] {
			return Params{}, true, fmt.Errorf("option %s is given twice", name)
		}
		seen[name] = true
		if err := p.set(name, value); err != nil {
			return Params{}, true, fmt.Errorf("option %s: %w", name, err)
		}
	}
	if len(seen) == 0 {
		return Params{}, false, nil
	}
	for _, name := range []string{
		contract.VerityRootHash, contract.VeritySalt, contract.VerityDataBlocks, contract.VerityHashOffset,
	} {
		if !seen[name] {
			return Params{}, true, fmt.Errorf("option %s is missing", name)
		}
	}
	return p, true, p.Validate()
}

func (p *Params) set(name, value string) (err error) {
	switch name {
	case contract.VerityRootHash:
		return decodeHex(p.RootHash[:], value)
	case contract.VeritySalt:
		if len(value) > 2*maxSalt {
			return fmt.Errorf("longer than %d bytes", maxSalt)
		}
		p.Salt = make([]byte, len(value)/2)
		return decodeHex(p.Salt, value)
	case contract.VerityDataBlocks:
		p.DataBlocks, err = parseUint(value)
	case contract.VerityHashOffset:
		p.HashOffset, err = parseUint(value)
	default:
		return errors.New("unknown option")
	}
	return err
}

// decodeHex accepts exactly the lower-case digits that fill dst.
func decodeHex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("%d hexadecimal digits, want %d", len(s), 2*len(dst))
	}
	if strings.ToLower(s) != s {
		return errors.New("upper-case digits")
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}

// parseUint accepts a number in its only canonical form.
func parseUint(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.20q is not a number", s)
	}
	return n, nil
}

// Validate checks that p can describe a device.
func (p Params) Validate() error {
	switch {
	case p.DataBlocks == 0 || p.DataBlocks > maxBlocks:
		return fmt.Errorf("%d data blocks, want 1 to %d", p.DataBlocks, uint64(maxBlocks))
	case p.HashOffset%BlockSize != 0:
		return fmt.Errorf("hash offset %d is not a multiple of %d", p.HashOffset, BlockSize)
	case p.HashOffset < p.DataBlocks*BlockSize:
		return fmt.Errorf("hash tree at %d overlaps %d data blocks", p.HashOffset, p.DataBlocks)
	case p.HashOffset > 2*maxBlocks*BlockSize:
		return fmt.Errorf("hash offset %d is out of range", p.HashOffset)
	case len(p.Salt) > maxSalt:
		return fmt.Errorf("salt of %d bytes is longer than %d", len(p.Salt), maxSalt)
	}
	return nil
}

// Sectors is the length of the device-mapper target in units of 512 bytes.
func (p Params) Sectors() uint64 { return p.DataBlocks * (BlockSize / sector) }

// Table is the parameter string of the kernel's verity target for a device that holds data and tree.
// No optional arguments: a block that does not verify reads as an I/O error, each time.
func (p Params) Table(device string) string {
	salt := "-"
	if len(p.Salt) > 0 {
		salt = hex.EncodeToString(p.Salt)
	}
	return fmt.Sprintf("1 %s %s %d %d %d %d sha256 %s %s", device, device, BlockSize, BlockSize,
		p.DataBlocks, p.HashOffset/BlockSize, p.Hex(), salt)
}

// level is one level of the tree on disk.
type level struct {
	offset uint64 // bytes from the start of the tree
	blocks uint64
}

// levels returns the tree's levels from the leaves up. On disk the top comes first. A single data
// block has no tree: its digest is the root hash.
func levels(dataBlocks uint64) []level {
	var ls []level
	for n := dataBlocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		ls = append(ls, level{blocks: n})
	}
	var off uint64
	for i := len(ls) - 1; i >= 0; i-- {
		ls[i].offset = off
		off += ls[i].blocks * BlockSize
	}
	return ls
}

// TreeSize is the size in bytes of the hash tree over the given number of data blocks.
func TreeSize(dataBlocks uint64) uint64 {
	var size uint64
	for _, l := range levels(dataBlocks) {
		size += l.blocks * BlockSize
	}
	return size
}
