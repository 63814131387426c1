// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/measurement/ovmf"
)

// stored is a variable as it lies in a store.
type stored struct {
	guid  ovmf.GUID
	name  string
	data  []byte
	state byte
}

func store(vars ...stored) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x48)
	copy(b[16:], guidNVStorage[:])
	le.PutUint64(b[32:], 8192)
	copy(b[40:], "_FVH")
	le.PutUint16(b[48:], 0x48)
	b = append(b, guidAuthStore[:]...)
	b = le.AppendUint32(b, 8192-0x48)
	b = append(b, 0x5a, 0xfe, 0, 0, 0, 0, 0, 0)
	for _, v := range vars {
		h := make([]byte, varHeader)
		le.PutUint16(h, varStart)
		h[2] = v.state
		name := append(utf16.Encode([]rune(v.name)), 0)
		le.PutUint32(h[36:], uint32(2*len(name)))
		le.PutUint32(h[40:], uint32(len(v.data)))
		copy(h[44:], v.guid[:])
		for _, c := range name {
			h = le.AppendUint16(h, c)
		}
		h = append(h, v.data...)
		for len(h)%4 != 0 {
			h = append(h, 0xff)
		}
		b = append(b, h...)
	}
	for len(b) < 8192 {
		b = append(b, 0xff)
	}
	return b
}

func TestSecureBootVariables(t *testing.T) {
	pk := stored{guidGlobal, "PK", []byte("platform"), varAdded}
	for _, tt := range []struct {
		name  string
		build bool
		vars  []stored
		want  []string // SecureBoot, PK, KEK, db, dbx
	}{
		{"no keys", false, nil, []string{"", "", "", "", ""}},
		{"no keys in a build with secure boot", true, nil, []string{"\x00", "", "", "", ""}},
		{
			"keys", false,
			[]stored{
				pk,
				{guidGlobal, "KEK", []byte("kek"), varAdded},
				{guidImageSecurity, "db", []byte("db!"), varAdded},
				{guidImageSecurity, "dbx", []byte("x"), varAdded},
			},
			[]string{"\x01", "platform", "kek", "db!", "x"},
		},
		{
			"keys, switched off", false,
			[]stored{pk, {guidEnableDisable, "SecureBootEnable", []byte{0}, varAdded}},
			[]string{"\x00", "platform", "", "", ""},
		},
		{"deleted key", false, []stored{{guidGlobal, "PK", []byte("old"), 0x3c}}, []string{"", "", "", "", ""}},
		{"key being replaced", false, []stored{
			{guidGlobal, "PK", []byte("old"), varReplaced},
			{guidGlobal, "PK", []byte("new"), varAdded},
		}, []string{"\x01", "new", "", "", ""}},
		{
			"replacement that was cut off", false,
			[]stored{{guidGlobal, "PK", []byte("old"), varReplaced}},
			[]string{"\x01", "old", "", "", ""},
		},
		{
			"same name elsewhere", false,
			[]stored{{guidImageSecurity, "PK", []byte("x"), varAdded}},
			[]string{"", "", "", "", ""},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vars, err := secureBootVariables(store(tt.vars...), tt.build)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range vars {
				got = append(got, string(v.data))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("variables (-want +got):\n%s", diff)
			}
		})
	}
}

// The five constants occur in every published log of a machine without keys.
func TestVariablesWithoutKeysHaveTheirKnownDigests(t *testing.T) {
	vars, err := secureBootVariables(store(), false)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"9dc3a1f80bcec915391dcda5", "6f2e3cbc14f9def86980f5f6", "d607c0efb41c0d757d69bca0",
		"08a74f8963b337acb6c93682", "18cc6e01f0c6ea99aa23f8a2",
	} {
		h := sha512.Sum384(vars[i].measured())
		if got := hex.EncodeToString(h[:12]); got != want {
			t.Errorf("%s = %s, want %s", vars[i].name, got, want)
		}
	}
	boot, err := Profile{EDK2: 202408}.BootOptions()[0].encode()
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.Sum384(boot)
	if got, want := hex.EncodeToString(h[:]),
		"23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298"; got != want {
		t.Errorf("Boot0000 = %s, want %s", got, want)
	}
}

func TestReadStoreRefuses(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func([]byte) []byte{
		"short":             func(b []byte) []byte { return b[:20] },
		"no volume":         func(b []byte) []byte { b[40] = 'x'; return b },
		"other volume":      func(b []byte) []byte { b[16]++; return b },
		"huge header":       func(b []byte) []byte { le.PutUint16(b[48:], 0xffff); return b },
		"other store":       func(b []byte) []byte { b[0x48]++; return b },
		"store too large":   func(b []byte) []byte { le.PutUint32(b[0x48+16:], 1<<20); return b },
		"variable too long": func(b []byte) []byte { le.PutUint32(b[0x48+28+40:], 0xffffffff); return b },
		"name too long":     func(b []byte) []byte { le.PutUint32(b[0x48+28+36:], 0xffffffff); return b },
	} {
		if v, err := readStore(change(store(stored{guidGlobal, "PK", []byte("x"), varAdded}))); err == nil {
			t.Errorf("%s: readStore = %v, want a refusal", name, v)
		}
	}
}

func TestLoadOptions(t *testing.T) {
	text := func(p string, cmdline string, initrd, shim bool) string {
		prof, err := ParseProfile(p)
		if err != nil {
			t.Fatal(err)
		}
		return utf16String(loadOptions(prof, cmdline, initrd, shim))
	}
	for _, tt := range []struct{ got, want string }{
		{text("edk2-stable202505+qemu-10.1", "a b", true, false), "a b initrd=initrd"},
		{text("edk2-stable202508+qemu-10.2", "a b", true, false), "initrd=initrd a b"},
		{text("edk2-stable202508+qemu-10.2", "a b", false, false), "a b"},
		{text("edk2-stable202508+qemu-10.2", "a b", true, true), "kernel initrd=initrd a b"},
	} {
		if tt.got != tt.want {
			t.Errorf("load options %q, want %q", tt.got, tt.want)
		}
	}
	if b := loadOptions(Profile{}, "ü", false, false); len(b) != 2*2+2 || b[0] != 0xc3 {
		t.Errorf("load options of two bytes = %x, want one character per byte", b)
	}
}
