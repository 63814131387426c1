// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ccel

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/coco-shim/coco/measurement/ovmf"
)

// Coverage says what an event's digest covers, as far as the log alone can tell.
type Coverage string

// The kinds of coverage.
const (
	CoversEvent  Coverage = "digest covers the event's data"
	CoversValue  Coverage = "digest covers the variable's value"
	CoversOther  Coverage = "digest covers bytes that are not in the log"
	Contradicted Coverage = "DIGEST CONTRADICTS THE EVENT'S DATA"
	Informative  Coverage = "not measured"
)

// Explanation is an event in words.
type Explanation struct {
	Name     string   // what the event is about: a variable's name, "kernel", "TdHob"
	Detail   string   // its content, if that can be said
	Coverage Coverage // whether Name and Detail are vouched for by the digest
}

// String returns the explanation as one line.
func (x Explanation) String() string {
	if x.Detail == "" {
		return string(x.Coverage)
	}
	return x.Detail + "; " + string(x.Coverage)
}

// Tags of the Linux EFI stub (drivers/firmware/efi/libstub/efistub.h).
const (
	tagInitrd      = 0x8f3b22ec
	tagLoadOptions = 0x8f3b22ed
)

// Explain says what the event means. Names and details come from the host unless the coverage says
// that the digest vouches for them.
func (e Event) Explain() Explanation {
	x := Explanation{Coverage: CoversOther}
	switch e.Type {
	case EvNoAction:
		return Explanation{Name: "information", Detail: printable(e.Data), Coverage: Informative}
	case EvSeparator:
		x.Name, x.Coverage = "separator", e.mustCover()
		if bytes.Equal(e.Data, []byte{1, 0, 0, 0}) {
			x.Detail = "the firmware reports an error"
		}
	case EvAction:
		x.Name, x.Detail, x.Coverage = "action", printable(e.Data), e.mustCover()
	case EvVarDriverConfig, EvVarAuthority, EvVarBoot, EvVarBoot2:
		e.variable(&x)
	case EvBootApplication, EvBootDriver:
		x.Name, x.Detail = "image", e.imagePath()
	case EvFirmwareBlob2, EvHandoffTables2:
		x.Name, x.Detail = e.blob()
	case EvEventTag:
		e.tag(&x)
	case EvGPT:
		x.Name, x.Coverage = "partition table", e.mustCover()
	case EvIPL:
		e.text(&x)
	default:
		x.Name, x.Detail = printable(e.Data), ""
		if e.covers(e.Data) {
			x.Coverage = CoversEvent
		}
	}
	return x
}

// covers reports whether the digest is that of the bytes, in the algorithm that its length tells.
func (e Event) covers(b []byte) bool {
	if len(e.Digest) == sha256.Size {
		h := sha256.Sum256(b)
		return bytes.Equal(h[:], e.Digest)
	}
	h := sha512.Sum384(b)
	return bytes.Equal(h[:], e.Digest)
}

// mustCover is for types whose digest is that of the data, by the specification.
func (e Event) mustCover() Coverage {
	if e.covers(e.Data) {
		return CoversEvent
	}
	return Contradicted
}

// text is for loaders' events: the digest covers the text with or without its NUL, or after a prefix
// such as "grub_cmd: ", or a file that the text names.
func (e Event) text(x *Explanation) {
	x.Name, x.Detail = "boot loader", printable(e.Data)
	trimmed := bytes.TrimRight(e.Data, "\x00")
	_, after, _ := bytes.Cut(trimmed, []byte(": "))
	for _, b := range [][]byte{e.Data, trimmed, after} {
		if e.covers(b) {
			x.Coverage = CoversEvent
		}
	}
}

// variable explains events that carry UEFI_VARIABLE_DATA.
func (e Event) variable(x *Explanation) {
	le := binary.LittleEndian
	x.Name = "variable"
	if len(e.Data) < 32 {
		x.Detail, x.Coverage = "malformed", Contradicted
		return
	}
	nameLen, dataLen := le.Uint64(e.Data[16:]), le.Uint64(e.Data[24:])
	body := e.Data[32:]
	if nameLen > uint64(len(body))/2 || dataLen != uint64(len(body))-2*nameLen {
		x.Detail, x.Coverage = "malformed", Contradicted
		return
	}
	x.Name = printable([]byte(utf16String(body[:2*nameLen])))
	value := body[2*nameLen:]
	x.Detail = describeVariable(x.Name, value)
	switch {
	case e.covers(e.Data):
		x.Coverage = CoversEvent
	case e.covers(value):
		x.Coverage = CoversValue
	default:
		x.Coverage = Contradicted
	}
}

func describeVariable(name string, value []byte) string {
	switch {
	case len(value) == 0:
		return "not set"
	case name == "SecureBoot" && len(value) == 1:
		return map[byte]string{0: "off", 1: "on"}[value[0]]
	case name == "BootOrder":
		var s []string
		for ; len(value) >= 2; value = value[2:] {
			s = append(s, fmt.Sprintf("%04X", binary.LittleEndian.Uint16(value)))
		}
		return strings.Join(s, " ")
	case strings.HasPrefix(name, "Boot") && len(name) == 8 && len(value) > 6:
		return printable([]byte(utf16String(value[6:])))
	}
	return fmt.Sprintf("%d bytes", len(value))
}

// tag explains events that the Linux EFI stub tags.
func (e Event) tag(x *Explanation) {
	x.Name = "tagged"
	if len(e.Data) < 8 {
		x.Detail = "malformed"
		return
	}
	switch binary.LittleEndian.Uint32(e.Data) {
	case tagInitrd:
		x.Name = "initrd"
	case tagLoadOptions:
		x.Name = "LoadOptions"
	}
	x.Detail = printable(e.Data[8:])
	if e.covers(e.Data) || e.covers(e.Data[8:]) { // agents tag what they measure; the stub tags what it names
		x.Coverage = CoversEvent
	}
}

// blob explains events that point at a range of memory.
func (e Event) blob() (name, detail string) {
	if len(e.Data) < 1 || int(e.Data[0]) > len(e.Data)-1 {
		return "blob", "malformed"
	}
	name, rest := printable(e.Data[1:1+e.Data[0]]), e.Data[1+e.Data[0]:]
	if e.Type == EvFirmwareBlob2 && len(rest) == 16 {
		le := binary.LittleEndian
		return name, fmt.Sprintf("%d bytes at %#x", le.Uint64(rest[8:]), le.Uint64(rest))
	}
	return name, ""
}

// imagePath renders the device path of a loaded image as far as it names files.
func (e Event) imagePath() string {
	const header = 32 // address, size, link time, length of path
	le := binary.LittleEndian
	if len(e.Data) < header {
		return "malformed"
	}
	var parts []string
	for b := e.Data[header:]; len(b) >= 4; {
		size := int(le.Uint16(b[2:]))
		if size < 4 || size > len(b) {
			return "malformed"
		}
		node := b[4:size]
		switch {
		case b[0] == 4 && b[1] == 4:
			parts = append(parts, printable([]byte(utf16String(node))))
		case b[0] == 4 && (b[1] == 6 || b[1] == 7) && len(node) == 16:
			parts = append(parts, ovmf.GUID(node).String())
		case b[0] == 4 && b[1] == 3 && len(node) >= 16:
			parts = append(parts, "media "+ovmf.GUID(node[:16]).String())
		}
		b = b[size:]
	}
	return strings.Join(parts, "/")
}

// printable makes text from the host safe to show: at most 200 runes, without control characters.
func printable(b []byte) string {
	b = bytes.TrimRight(b, "\x00")
	if len(b) > 800 {
		b = b[:800]
	}
	var s strings.Builder
	n := 0
	for _, r := range string(b) {
		if n++; n > 200 {
			s.WriteString("…")
			break
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			r = '.'
		}
		s.WriteRune(r)
	}
	return s.String()
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
