// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ovmf

import (
	"bytes"
	"errors"
	"testing"
)

// section is a section of a type.
func section(kind byte, body []byte) []byte {
	n := len(body) + 4
	b := append([]byte{byte(n), byte(n >> 8), byte(n >> 16), kind}, body...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// packed is an image with these sections, which nothing compresses.
func packed(sections ...[]byte) []byte {
	body := append(bytes.Clone(guidLZMA[:]), 24, 0, 1, 0)
	return append(make([]byte, 64), section(sectionGUIDed, append(body, bytes.Join(sections, nil)...))...)
}

func copied(b []byte, _ int) ([]byte, error) { return b, nil }

func TestDriverVolumeIsTheLast(t *testing.T) {
	pad := section(0x19, make([]byte, 8))
	fw := packed(pad, section(sectionVolume, []byte("first")), pad, section(sectionVolume, []byte("drivers")))
	if got, err := DriverVolume(fw, copied); err != nil || string(got) != "drivers" {
		t.Errorf("DriverVolume() = %q, %v", got, err)
	}
	for name, fw := range map[string][]byte{
		"nothing": nil, "no section": make([]byte, 4096), "no volume": packed(pad), "cut off": fw[:len(fw)-8],
		"the name alone": guidLZMA[:],
	} {
		if got, err := DriverVolume(fw, copied); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	failed := errors.New("no LZMA")
	if _, err := DriverVolume(fw, func([]byte, int) ([]byte, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("LZMA that is none: %v", err)
	}
}

func FuzzDriverVolume(f *testing.F) {
	f.Add(packed(section(sectionVolume, []byte("drivers"))))
	f.Fuzz(func(_ *testing.T, fw []byte) { _, _ = DriverVolume(fw, copied) })
}
