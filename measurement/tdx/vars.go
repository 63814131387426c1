// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/coco-shim/coco/measurement/ovmf"
)

// variable is a UEFI variable that firmware measures.
type variable struct {
	guid ovmf.GUID
	name string
	data []byte
}

func guid(s string) ovmf.GUID {
	g, err := ovmf.ParseGUID(s)
	if err != nil {
		panic(err) // a constant of this package; a test walks all of them
	}
	return g
}

var (
	guidGlobal        = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	guidImageSecurity = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	guidEnableDisable = guid("f0a30bc7-af08-4556-99c4-001009c93a44") // of SecureBootEnable
	guidNVStorage     = guid("fff12b8d-7696-4c8b-a985-2747075b4f50")
	guidAuthStore     = guid("aaf32c78-947b-439a-a180-2e144ec37792")
)

// measured returns the UEFI_VARIABLE_DATA structure whose digest is logged for secure-boot variables.
func (v variable) measured() []byte {
	name := utf16.Encode([]rune(v.name))
	b := append([]byte(nil), v.guid[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(v.data)))
	for _, c := range name {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, v.data...)
}

// secureBootVariables returns what a firmware measures of the secure-boot policy in its variable
// store, in order. A build with secure boot has the variable SecureBoot even without keys.
func secureBootVariables(cfv []byte, build bool) ([]variable, error) {
	store, err := readStore(cfv)
	if err != nil {
		return nil, err
	}
	get := func(g ovmf.GUID, name string) []byte { return store[storeKey{g, name}] }
	out := []variable{{guidGlobal, "SecureBoot", nil}}
	for _, k := range []storeKey{
		{guidGlobal, "PK"},
		{guidGlobal, "KEK"},
		{guidImageSecurity, "db"},
		{guidImageSecurity, "dbx"},
	} {
		out = append(out, variable{k.guid, k.name, get(k.guid, k.name)})
	}
	switch enable := get(guidEnableDisable, "SecureBootEnable"); {
	case len(get(guidGlobal, "PK")) > 0 && (len(enable) == 0 || enable[0] == 1):
		out[0].data = []byte{1}
	case len(get(guidGlobal, "PK")) > 0 || build:
		out[0].data = []byte{0}
	}
	return out, nil
}

type storeKey struct {
	guid ovmf.GUID
	name string
}

const (
	fvHeader    = 56 // up to the block map
	storeHeader = 28
	varHeader   = 60 // AUTHENTICATED_VARIABLE_HEADER
	varStart    = 0x55aa
	varAdded    = 0x3f
	varReplaced = 0x3e // being replaced, and valid until its successor is added
	maxVars     = 4096
)

// readStore reads the authenticated variable store of a configuration volume. An erased store is empty.
func readStore(cfv []byte) (map[storeKey][]byte, error) {
	b, err := storeBody(cfv)
	if err != nil {
		return nil, fmt.Errorf("variable store: %w", err)
	}
	le := binary.LittleEndian
	out := map[storeKey][]byte{}
	added := map[storeKey]bool{}
	for at, n := 0, 0; at+varHeader <= len(b); n++ {
		h := b[at:]
		if le.Uint16(h) != varStart {
			break
		}
		nameSize, dataSize := uint64(le.Uint32(h[36:])), uint64(le.Uint32(h[40:]))
		end := varHeader + nameSize + dataSize
		if nameSize > uint64(len(h)) || dataSize > uint64(len(h)) || end > uint64(len(h)) || n > maxVars {
			return nil, fmt.Errorf("variable store: variable at %#x has name of %d and data of %d bytes, more than is left", at,
				nameSize, dataSize)
		}
		state := h[2]
		k := storeKey{ovmf.GUID(h[44:60]), utf16String(h[varHeader : varHeader+nameSize])}
		if state == varAdded || state == varReplaced && !added[k] {
			out[k] = h[varHeader+nameSize : end]
			added[k] = state == varAdded
		}
		at += int((end + 3) &^ 3) //nolint:gosec // in b
	}
	return out, nil
}

// storeBody checks the volume's and the store's headers and returns the variables.
func storeBody(cfv []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(cfv) < fvHeader || string(cfv[40:44]) != "_FVH" {
		return nil, errors.New("the section is no firmware volume")
	}
	if g := ovmf.GUID(cfv[16:32]); g != guidNVStorage {
		return nil, fmt.Errorf("the volume has type %s, not that of variables", g)
	}
	head := int(le.Uint16(cfv[48:]))
	if head < fvHeader || head+storeHeader > len(cfv) {
		return nil, fmt.Errorf("the volume's header of %d bytes leaves no room for a store", head)
	}
	s := cfv[head:]
	if g := ovmf.GUID(s[:16]); g != guidAuthStore {
		return nil, fmt.Errorf("the store has type %s; only authenticated variables are known", g)
	}
	size := uint64(le.Uint32(s[16:]))
	if size < storeHeader || size > uint64(len(s)) {
		return nil, fmt.Errorf("the store's size %d is not within its volume's %d bytes", size, len(s))
	}
	return s[storeHeader:size], nil
}

// utf16String decodes a NUL-terminated UTF-16 string.
func utf16String(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// BootOption is a Boot#### variable for a file in the firmware's own volume.
type BootOption struct {
	Attributes  uint32
	Description string
	Volume      string // GUID of the firmware volume
	File        string // GUID of the file in it
}

// encode returns the variable's value (EFI_LOAD_OPTION).
func (o BootOption) encode() ([]byte, error) {
	volume, errV := ovmf.ParseGUID(o.Volume)
	file, errF := ovmf.ParseGUID(o.File)
	if err := errors.Join(errV, errF); err != nil {
		return nil, fmt.Errorf("boot option %s: %w", o.Description, err)
	}
	path := append([]byte{4, 7, 20, 0}, volume[:]...) // media device, firmware volume
	path = append(append(path, 4, 6, 20, 0), file[:]...)
	path = append(path, 0x7f, 0xff, 4, 0) // end
	le := binary.LittleEndian
	b := le.AppendUint16(le.AppendUint32(nil, o.Attributes), uint16(len(path))) //nolint:gosec // 44 bytes
	for _, c := range append(utf16.Encode([]rune(o.Description)), 0) {
		b = le.AppendUint16(b, c)
	}
	return append(b, path...), nil
}
