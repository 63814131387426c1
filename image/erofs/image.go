// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"errors"
	"fmt"
	"io"
)

// CheckImage looks at the superblock of an image that somebody else made (containerd's EROFS
// snapshotter) and returns how many bytes of the file belong to it. Images that need further
// devices are refused: they are not complete.
func CheckImage(r io.ReaderAt, fileSize int64) (int64, error) {
	var sb [128]byte
	if _, err := r.ReadAt(sb[:], superOffset); err != nil {
		return 0, fmt.Errorf("no EROFS superblock: %w", err)
	}
	bits := sb[12]
	switch {
	case le.Uint32(sb[0:]) != superMagic:
		return 0, errors.New("not an EROFS image")
	case bits < 9 || bits > blockBits:
		return 0, fmt.Errorf("EROFS block size 2^%d is not supported", bits)
	case le.Uint16(sb[86:]) != 0:
		return 0, errors.New("EROFS image keeps its data on other devices, which is not supported")
	}
	size := int64(le.Uint32(sb[36:])) << bits
	if size == 0 || size > fileSize {
		return 0, fmt.Errorf("EROFS image of %d bytes is cut off at %d", size, fileSize)
	}
	return size, nil
}
