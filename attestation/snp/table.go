// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"encoding/binary"
	"fmt"
)

// GUIDs of the host's certificate table: GHCB specification, AMD 56421, "SNP Extended Guest Request".
const (
	guidVCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
	guidVLEK = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
	guidASK  = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
	guidARK  = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
	guidEnd  = "00000000-0000-0000-0000-000000000000"
)

const (
	entrySize  = 24
	maxTable   = 128 << 10
	maxEntries = 64
)

// parseTable reads the certificate table that the host gives with a report. The result is by GUID. Entries with unknown
// GUIDs are kept: a newer host may send them. An empty table is none.
func parseTable(b []byte) (map[string][]byte, error) {
	if len(b) > maxTable {
		return nil, fmt.Errorf("the certificate table has %d bytes; at most %d are read", len(b), maxTable)
	}
	out := map[string][]byte{}
	if len(b) == 0 {
		return out, nil
	}
	for i := range maxEntries {
		if len(b) < (i+1)*entrySize {
			return nil, fmt.Errorf("the certificate table ends within entry %d", i)
		}
		e := b[i*entrySize:]
		guid := formatGUID(e[:16])
		if guid == guidEnd {
			return out, nil
		}
		offset, length := uint64(binary.LittleEndian.Uint32(e[16:])), uint64(binary.LittleEndian.Uint32(e[20:]))
		if offset+length > uint64(len(b)) {
			return nil, fmt.Errorf("entry %d of the certificate table: %d bytes at %d are not there", i, length, offset)
		}
		if _, twice := out[guid]; twice {
			return nil, fmt.Errorf("entry %d of the certificate table, %s, is there already", i, guid)
		}
		out[guid] = b[offset : offset+length]
	}
	return nil, fmt.Errorf("the certificate table has more than %d entries", maxEntries)
}

// formatGUID prints a GUID. The host writes its bytes in the order of its text.
func formatGUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
