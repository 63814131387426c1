// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bzimage_test

import (
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement/bzimage"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
)

func TestParse(t *testing.T) {
	good := func(change func([]byte)) []byte {
		b := bzimagetest.Kernel("6.12.48+deb13-amd64", "")
		change(b)
		return b
	}
	k, err := bzimage.Parse(good(func([]byte) {}), 0x1000)
	if err != nil || k.Release != "6.12.48+deb13-amd64" || !k.EFI {
		t.Errorf("Parse = %+v, %v", k, err)
	}
	long := func(text string) []byte { return append([]byte(text), make([]byte, 4096)...) }
	for name, tt := range map[string]struct {
		file []byte
		want string
	}{
		"nothing":          {nil, "is empty"},
		"text":             {[]byte("kernel"), "no setup header"},
		"ELF":              {long("\x7fELF"), "an ELF file (vmlinux)"},
		"gzip":             {long("\x1f\x8b\x08"), "gzip"},
		"a short gzip":     {[]byte("\x1f\x8b\x08"), "gzip"},
		"zstd":             {long("\x28\xb5\x2f\xfd"), "zstd"},
		"zboot":            {long("MZ\x00\x00zimg"), "zboot"},
		"arm64":            {long("MZ" + strings.Repeat("\x00", 0x36) + "ARM\x64"), "arm64"},
		"a unified image":  {long("MZ"), "unified kernel image"},
		"IGVM":             {long("IGVM"), "an IGVM file"},
		"an old protocol":  {good(func(b []byte) { b[0x206] = 0xb }), "boot protocol 0x20b"},
		"a zImage":         {good(func(b []byte) { b[0x211] = 0 }), "zImage"},
		"a 32-bit kernel":  {good(func(b []byte) { b[0x236] = 0 }), "32-bit"},
		"a cut-off kernel": {good(func(b []byte) { b[0x1f1] = 30 }), "is cut off"},
	} {
		if _, err := bzimage.Parse(tt.file, int64(len(tt.file))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Parse = %v, want %q", name, err, tt.want)
		}
	}
	for name, change := range map[string]func([]byte){
		"no EFI program":    func(b []byte) { b[0] = 0 },
		"EFI of 32 bits":    func(b []byte) { b[0x44] = 0x4c },
		"a header far away": func(b []byte) { b[0x3f] = 0xff },
	} {
		if k, err := bzimage.Parse(good(change), 0x1000); err != nil || k.EFI {
			t.Errorf("%s: Parse = %+v, %v", name, k, err)
		}
	}
}

func TestRTMR2DependsOnTheVersion(t *testing.T) {
	for release, want := range map[string]string{
		"6.9.0": "fine", "6.9": "fine", "6.12.48+deb13-amd64": "fine", "7.0.0-rc1": "fine", "6.10~rc2-x": "fine",
		"6.8.12": "problem", "6.1.0-37-amd64": "problem", "5.15.0-100-generic": "problem", "6.8.0-41-generic": "problem",
		"5.14.0-503.11.1.el9_5.x86_64": "doubt", "6.8.0-1004-intel": "doubt", "6.6.0-tdx": "doubt", "": "doubt",
		"custom": "doubt",
	} {
		k, err := bzimage.Parse(bzimagetest.Kernel(release, ""), 0x1000)
		if err != nil {
			t.Fatal(err)
		}
		doubt, problem := k.RTMR2()
		if got := map[[2]bool]string{
			{false, false}: "fine", {true, false}: "doubt",
			{false, true}: "problem",
		}[[2]bool{doubt != nil, problem != nil}]; got != want {
			t.Errorf("RTMR2 of release %q = %v, %v, want %s", release, doubt, problem, want)
		}
	}
}

func TestInitrdMustFit(t *testing.T) {
	const mib = 1 << 20
	high := bzimagetest.Kernel("6.12", "")
	low := bzimagetest.Kernel("6.12", "")
	low[0x236] = 1 // below initrd_addr_max only
	for _, tt := range []struct {
		kernel []byte
		size   int64
		memory uint64
		fits   bool
	}{
		{high, 0, 0, false},
		{high, 60 * mib, 0, true},
		{high, 60 * mib, 256 * mib, true},
		{high, 300 * mib, 256 * mib, false},
		{high, 256*mib - 0x28001, 256 * mib, false},
		{high, 256*mib - 0x28002, 256 * mib, true},
		{high, 2047 * mib, 8192 * mib, true},
		{high, 2048 * mib, 8192 * mib, false}, // memory below 4 GiB ends at 2 GiB
		{high, 2300 * mib, 2500 * mib, true},
		{low, 2048 * mib, 2500 * mib, false},
		{high, 1, 1, false},
	} {
		k, err := bzimage.Parse(tt.kernel, 0x1000)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Initrd(tt.size, tt.memory); (err == nil) != tt.fits {
			t.Errorf("Initrd(%d) in %d bytes of memory = %v, want fits %t", tt.size, tt.memory, err, tt.fits)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(bzimagetest.Kernel("6.12", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		k, err := bzimage.Parse(b, int64(len(b)))
		if err == nil {
			_, _ = k.RTMR2()
			_ = k.Initrd(int64(len(b)), uint64(len(b)))
		}
	})
}
