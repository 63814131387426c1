// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Layout of sections (UEFI Platform Initialization, volume 3, 2.2.4).
const (
	sectionVolume  = 0x17 // EFI_SECTION_FIRMWARE_VOLUME_IMAGE
	sectionGUIDed  = 0x02
	maxUnpacked    = 64 << 20
	maxSectionList = 64
)

// guidLZMA marks a section that is compressed; edk2's LZMA_CUSTOM_DECOMPRESS_GUID.
var guidLZMA = mustGUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")

// ErrVolume marks an image in which no volume of drivers was found.
var ErrVolume = errors.New("no compressed volumes of OVMF in it")

// DriverVolume returns the volume with the firmware's drivers, DXEFV: the last one in the image's compressed section.
// unpack inflates LZMA ("alone") to at most so many bytes.
func DriverVolume(fw []byte, unpack func(b []byte, limit int) ([]byte, error)) ([]byte, error) {
	const head = 4 // of a section: size in 24 bits, type
	at := bytes.Index(fw, guidLZMA[:])
	if at < head || fw[at-1] != sectionGUIDed || at+20 > len(fw) {
		return nil, ErrVolume
	}
	size, offset := sectionSize(fw[at-head:]), int(binary.LittleEndian.Uint16(fw[at+16:]))
	if size > len(fw)-at+head || offset > size {
		return nil, fmt.Errorf("compressed section of %d bytes: %w", size, ErrVolume)
	}
	b, err := unpack(fw[at-head+offset:at-head+size], maxUnpacked)
	if err != nil {
		return nil, fmt.Errorf("inflate its volumes: %w", err)
	}
	var volume []byte
	for n := 0; len(b) >= head && n < maxSectionList; n++ {
		size := sectionSize(b)
		if size < head || size > len(b) {
			return nil, fmt.Errorf("a section of %d bytes in its volumes, where %d are left", size, len(b))
		}
		if b[3] == sectionVolume {
			volume = b[head:size]
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	if volume == nil {
		return nil, ErrVolume
	}
	return volume, nil
}

func sectionSize(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }
