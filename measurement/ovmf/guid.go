// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// GUID is an EFI GUID in its memory form: the first three groups little-endian, the rest as written.
type GUID [16]byte

// String returns the GUID in its usual text form.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

// ParseGUID reads the text form of a GUID.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("%q is not a GUID", s)
	}
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return g, fmt.Errorf("%q is not a GUID", s)
	}
	binary.LittleEndian.PutUint32(g[:], binary.BigEndian.Uint32(b))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(b[6:]))
	copy(g[8:], b[8:])
	return g, nil
}

// mustGUID is for constants of this package only; a test walks all of them.
func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// GUIDs of the footer table, as edk2's OvmfPkg/ResetVector defines them.
var (
	guidFooter      = mustGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	guidResetBlock  = mustGUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	guidHashArea    = mustGUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
	guidSEVMetadata = mustGUID("dc886566-984a-4798-a75e-5585a7bf67cc")
	guidTDXMetadata = mustGUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
	guidSVSMInfo    = mustGUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")
)
