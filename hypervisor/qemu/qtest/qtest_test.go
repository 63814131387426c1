// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
)

// script is a QEMU that gives scripted answers.
type script struct{ io.Reader }

func (script) Write(p []byte) (int, error) { return len(p), nil }

// machine is a QEMU with files in its fw_cfg, as far as the client uses one.
type machine struct {
	items   [][]byte // by key
	at      int
	current []byte
	memory  map[int][]byte
	out     bytes.Buffer
	bars    map[string]string // what was written to PCI
	address string
	fail    string // the command that is answered by FAIL
	broken  bool   // transfers fail
}

func newMachine(files map[string][]byte) *machine {
	m := &machine{items: make([][]byte, 0x40), memory: map[int][]byte{}, bars: map[string]string{}}
	dir := binary.BigEndian.AppendUint32(nil, uint32(len(files)))
	for name, data := range files {
		e := make([]byte, 64)
		binary.BigEndian.PutUint32(e, uint32(len(data)))
		binary.BigEndian.PutUint16(e[4:], uint16(len(m.items)))
		copy(e[8:], name)
		dir = append(dir, e...)
		m.items = append(m.items, data)
	}
	m.items[keyDirectory] = dir
	return m
}

func (m *machine) Read(p []byte) (int, error) { return m.out.Read(p) }

func (m *machine) Write(p []byte) (int, error) {
	f := strings.Fields(string(p))
	n := func(i int) (v int) {
		if _, err := fmt.Sscan(f[i], &v); err != nil {
			panic(err)
		}
		return v
	}
	answer := "OK"
	switch {
	case f[0] == m.fail:
		answer = "FAIL Unknown command"
	case f[0] == "write":
		b, err := hex.DecodeString(strings.TrimPrefix(f[3], "0x"))
		if err != nil {
			return 0, err
		}
		m.memory[n(1)] = b
	case f[0] == "outl" && f[1] == "0xcf8":
		m.address = f[2]
	case f[0] == "outl" && f[1] == "0xcfc":
		m.bars[m.address] = f[2]
	case f[0] == "inl":
		answer = "OK 0x0"
		if m.address == "0x80001020" { // slot 2
			answer = "OK 0xc"
		}
	case f[0] == "outl" && f[1] == "0x518":
		m.transfer()
		m.out.WriteString("IRQ raise 1\n") // may come at any time
	case f[0] == "b64read":
		b := m.memory[n(1)]
		answer = "OK " + base64.StdEncoding.EncodeToString(b[:min(n(2), len(b))])
	}
	m.out.WriteString(answer + "\n")
	return len(p), nil
}

func (m *machine) transfer() {
	d := m.memory[descriptorAt]
	if m.broken {
		binary.BigEndian.PutUint32(d, 1)
		return
	}
	control, length := binary.BigEndian.Uint32(d), int(binary.BigEndian.Uint32(d[4:]))
	if control&dmaSelect != 0 {
		m.current, m.at = m.items[control>>16], 0
	}
	m.memory[dataAt] = m.current[m.at:][:length]
	m.at += length
	clear(d[:4])
}

func TestFilesAreRead(t *testing.T) {
	files := map[string][]byte{ACPI: []byte("tables"), RSDP: []byte("rsdp"), "etc/other": []byte("other")}
	m := newMachine(files)
	got, err := newClient(m).files(OVMF(202508, 46), []string{RSDP, ACPI, SMBIOS})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string][]byte{ACPI: files[ACPI], RSDP: files[RSDP]}, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	want := map[string]string{
		"0x80000060": "0xe0000001", "0x80000064": "0x0", "0x8000f840": "0x601", "0x8000f844": "0x80",
		"0x80001020": "0x0", "0x80001024": "0x3800", "0x80001004": "0x2",
	}
	if d := cmp.Diff(want, m.bars); d != "" {
		t.Errorf("what the firmware is seen to do (-want +got):\n%s", d)
	}
}

func TestWhatGoesWrongIsSaid(t *testing.T) {
	good := map[string][]byte{ACPI: []byte("tables")}
	for _, tt := range []struct {
		name string
		qemu io.ReadWriter
		want string
	}{
		{
			"it refuses a command", func() *machine { m := newMachine(good); m.fail = "b64read"; return m }(),
			`answer "FAIL Unknown command"`,
		},
		{
			"a transfer fails", func() *machine { m := newMachine(good); m.broken = true; return m }(),
			"transfer ends with 00000001",
		},
		{"it ends", script{strings.NewReader("OK\nOK\n")}, "ended the conversation"},
		{"too many files", func() *machine {
			m := newMachine(good)
			binary.BigEndian.PutUint32(m.items[keyDirectory], 1<<30)
			return m
		}(), "1073741824 files"},
		{"too large a file", func() *machine {
			m := newMachine(good)
			binary.BigEndian.PutUint32(m.items[keyDirectory][4:], 1<<31)
			return m
		}(), "2147483648 bytes"},
		{"too few bytes", script{strings.NewReader(strings.Repeat("OK 0x0\n", 80))}, "read 4 bytes of memory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files, err := newClient(tt.qemu).files(OVMF(202302, 40), []string{ACPI})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("files = %v, %v, want an error with %q", files, err, tt.want)
			}
		})
	}
}

func TestReadSaysWhatQEMUSays(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho 'no such machine' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), []string{bin}, OVMF(202508, 46), ACPI); err == nil ||
		!strings.Contains(err.Error(), "it says: no such machine") {
		t.Errorf("Read = %v", err)
	}
	if _, err := Read(t.Context(), []string{"/nonexistent"}, OVMF(202508, 46), ACPI); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read = %v", err)
	}
}

func FuzzReplies(f *testing.F) {
	m := newMachine(map[string][]byte{ACPI: []byte("tables"), RSDP: []byte("rsdp")})
	var said bytes.Buffer
	if _, err := newClient(struct {
		io.Reader
		io.Writer
	}{io.TeeReader(m, &said), m}).files(OVMF(202508, 46), []string{ACPI, RSDP}); err != nil {
		f.Fatal(err)
	}
	f.Add(said.Bytes())
	f.Fuzz(func(t *testing.T, replies []byte) {
		defer worktest.Bound(t, len(replies))()
		files, err := newClient(script{bytes.NewReader(replies)}).files(OVMF(202508, 46), []string{ACPI, RSDP})
		if err == nil && len(files) > 2 {
			t.Errorf("files = %v", files)
		}
	})
}
