// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package super checks the superblocks of EROFS images that other programs made, before a kernel reads them. An
// image of plain files and directories passes; one that needs more of the kernel's code does not. The host checks
// images of containerd's EROFS snapshotter, the guest checks every layer.
//
// A superblock says what an image may contain, not what it contains: an inode with the compression of the first
// EROFS images needs no flag. That is left to the kernel.
package super

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Offsets as in the kernel's fs/erofs/erofs_fs.h (Linux 6.12).
const (
	offset = 1024
	magic  = 0xE0F5E1E2

	atBlockBits     = 12
	atBlocks        = 36
	atIncompat      = 80
	atCompression   = 84 // the distance of LZ4, or the algorithms
	atExtraDevices  = 86
	atDirBlockBits  = 90
	maxBlockBits    = 12
	superBytes      = 128
	zeroPadding     = 0x1 // mkfs.erofs sets it always; by itself it asks nothing of the kernel
	allowedIncompat = zeroPadding
)

// features are the names of feature_incompat's bits.
var features = []string{
	"zero_padding", "compr_cfgs or big_pcluster", "chunked_file", "device_table", "ztailpacking", "fragments or dedupe",
	"xattr_prefixes", "48bit", "metabox",
}

// Check returns how many bytes of a file belong to its image.
func Check(r io.ReaderAt, fileSize int64) (int64, error) {
	var sb [superBytes]byte
	if _, err := r.ReadAt(sb[:], offset); err != nil {
		return 0, fmt.Errorf("no EROFS superblock: %w", err)
	}
	le, bits := binary.LittleEndian, sb[atBlockBits]
	switch {
	case le.Uint32(sb[0:]) != magic:
		return 0, errors.New("not an EROFS image")
	case bits < 9 || bits > maxBlockBits:
		return 0, fmt.Errorf("EROFS block size 2^%d is not supported", bits)
	case le.Uint16(sb[atExtraDevices:]) != 0:
		return 0, errors.New("EROFS image keeps its data on other devices, which is not supported")
	case le.Uint32(sb[atIncompat:])&^allowedIncompat != 0:
		return 0, fmt.Errorf("EROFS image has the features %s, which are not supported; make it without options of "+
			"mkfs.erofs", names(le.Uint32(sb[atIncompat:])&^allowedIncompat))
	case le.Uint16(sb[atCompression:]) != 0:
		return 0, errors.New("EROFS image is compressed, which is not supported; make it without -z of mkfs.erofs")
	case sb[atDirBlockBits] != 0:
		return 0, fmt.Errorf("EROFS image has directory blocks of 2^%d blocks, which are not supported", sb[atDirBlockBits])
	}
	size := int64(le.Uint32(sb[atBlocks:])) << bits
	if size == 0 || size > fileSize {
		return 0, fmt.Errorf("EROFS image of %d bytes is cut off at %d", size, fileSize)
	}
	return size, nil
}

func names(bits uint32) string {
	var out []string
	for i, name := range features {
		if bits>>i&1 != 0 {
			out = append(out, name)
		}
	}
	if rest := bits >> len(features); rest != 0 {
		out = append(out, fmt.Sprintf("%#x", rest<<len(features)))
	}
	return strings.Join(out, ", ")
}
