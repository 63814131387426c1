// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package igvmtest helps tests to change IGVM files.
package igvmtest

import (
	"encoding/binary"
	"hash/crc32"
)

// Resum corrects the total size and the checksum of a changed file in place, so that a reader looks
// beyond them, and returns it. Files whose headers cannot be found are left alone.
func Resum(b []byte) []byte {
	le := binary.LittleEndian
	if len(b) < 24 {
		return b
	}
	end := uint64(le.Uint32(b[8:])) + uint64(le.Uint32(b[12:]))
	if end > uint64(len(b)) || end < 24 {
		return b
	}
	le.PutUint32(b[16:], uint32(len(b)))
	clear(b[20:24])
	le.PutUint32(b[20:], crc32.ChecksumIEEE(b[:end]))
	return b
}
