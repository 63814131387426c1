// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package partlist reads and writes contract.PartsFile, the list of a guest image's parts. Each line has a part's name,
// its root hash in hexadecimal digits, and the number of its data blocks. The hash tree follows the data, and the salt
// is verity.Salt.
package partlist

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/verity"
)

// maxLines bounds a list.
const maxLines = 16

// Line is the line of one part.
type Line struct {
	Name     string `json:"name"`
	RootHash string `json:"root_hash"`
	Blocks   uint64 `json:"blocks"` // of data
}

// Params describes the part's disk.
func (l Line) Params() verity.Params {
	p := verity.Params{Salt: verity.Salt, DataBlocks: l.Blocks, HashOffset: l.Blocks * verity.BlockSize}
	_, _ = hex.Decode(p.RootHash[:], []byte(l.RootHash)) // Parse has checked it
	return p
}

// Write returns the list.
func Write(lines []Line) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		fmt.Fprintf(&b, "%s %s %d\n", l.Name, l.RootHash, l.Blocks)
	}
	return b.Bytes()
}

// IsName reports whether a part may be called so. Its name is also the serial number of its disk.
func IsName(s string) bool {
	rest, ok := strings.CutPrefix(s, contract.PartPrefix)
	return ok && rest != "" && len(s) <= 20 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz") == ""
}

// Parse reads a list.
func Parse(text []byte) ([]Line, error) {
	var out []Line
	for row := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(row, "\n"), " ")
		if len(f) != 3 || len(out) == maxLines {
			return nil, fmt.Errorf("line %d is not NAME HASH BLOCKS", len(out)+1)
		}
		hash, err := hex.DecodeString(f[1])
		blocks, berr := strconv.ParseUint(f[2], 10, 32)
		if !IsName(f[0]) || err != nil || len(hash) != verity.HashSize || berr != nil || blocks == 0 {
			return nil, fmt.Errorf("line %d: %.100q is not NAME HASH BLOCKS", len(out)+1, row)
		}
		out = append(out, Line{Name: f[0], RootHash: f[1], Blocks: blocks})
	}
	return out, nil
}
