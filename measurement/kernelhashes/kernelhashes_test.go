// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kernelhashes_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
)

func TestTableLayout(t *testing.T) {
	h := kernelhashes.Hashes{
		Kernel: sha256.Sum256([]byte("k")), Initrd: sha256.Sum256([]byte("i")),
		Cmdline: sha256.Sum256([]byte("c")),
	}
	table := h.Table()
	for _, e := range []struct {
		at   int
		guid string
		size uint16
		hash []byte
	}{
		{0, "9438d606-4f22-4cc9-b479-a793d411fd21", 168, nil},
		{18, "97d02dd8-bd20-4c94-aa78-e7714d36ab2a", 50, h.Cmdline[:]},
		{68, "44baf731-3a2f-4bd7-9af1-41e29169781d", 50, h.Initrd[:]},
		{118, "4de79437-abd2-427f-b835-d5b172d2045b", 50, h.Kernel[:]},
	} {
		if got := ovmf.GUID(table[e.at : e.at+16]).String(); got != e.guid {
			t.Errorf("GUID at %d = %s, want %s", e.at, got, e.guid)
		}
		if got := binary.LittleEndian.Uint16(table[e.at+16:]); got != e.size {
			t.Errorf("size at %d = %d, want %d", e.at, got, e.size)
		}
		if e.hash != nil && !bytes.Equal(table[e.at+18:e.at+50], e.hash) {
			t.Errorf("hash at %d = %x, want %x", e.at, table[e.at+18:e.at+50], e.hash)
		}
	}
	if kernelhashes.TableSize != 176 || !bytes.Equal(table[168:], make([]byte, 8)) {
		t.Errorf("table of %d bytes ends with %x", len(table), table[168:])
	}
}

func TestEveryByteOfTheCommandLineCounts(t *testing.T) {
	seen := map[[32]byte]string{}
	for _, s := range []string{"", " ", "a", "a ", " a", "a\t", "ä", "a\x00", "a b", "a  b"} {
		h := kernelhashes.Cmdline(s)
		if o, ok := seen[h]; ok {
			t.Errorf("command lines %q and %q have the same hash", s, o)
		}
		seen[h] = s
		if want := sha256.Sum256(append([]byte(s), 0)); h != want {
			t.Errorf("Cmdline(%q) = %x, want %x", s, h, want)
		}
	}
}

func TestAbsentInitrdIsAnEmptyFile(t *testing.T) {
	empty := sha256.Sum256(nil)
	if a, b := kernelhashes.New([32]byte{1}, nil, ""), kernelhashes.New([32]byte{1}, &empty, ""); a != b {
		t.Errorf("without initrd %+v, with an empty one %+v", a, b)
	}
}

func TestRead(t *testing.T) {
	b := bytes.Repeat([]byte("0123456789"), 100_000)
	got, err := kernelhashes.Read(iotest.HalfReader(bytes.NewReader(b)))
	if err != nil || got != sha256.Sum256(b) {
		t.Errorf("Read = %x, %v", got, err)
	}
	broken := errors.New("broken")
	if _, err := kernelhashes.Read(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("Read of a broken stream = %v", err)
	}
}

func TestAreaRefusesATableThatDoesNotFit(t *testing.T) {
	var h kernelhashes.Hashes
	for _, tt := range []struct {
		offset, size uint32
		ok           bool
	}{
		{0, 4096, true},
		{4096 - 176, 4096, true},
		{4096 - 175, 4096, false},
		{0, 0, false},
		{0xffffffff, 4096, false},
		{0, 0xfffff000, false},
	} {
		b, err := h.Area(tt.offset, tt.size)
		if (err == nil) != tt.ok || tt.ok && len(b) != int(tt.size) {
			t.Errorf("Area(%#x, %#x) = %d bytes, %v, want success %v", tt.offset, tt.size, len(b), err, tt.ok)
		}
	}
}
