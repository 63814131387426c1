// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package words

import (
	"runtime"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
	"unsafe"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestError(t *testing.T) {
	kata := "failed to create container\n\nCaused by:\n    0: mount rootfs\n    1: ENOENT: No such file or directory\n\n" +
		"Stack backtrace:\n   0: anyhow::error::<impl>::msg\n             at ./src/lib.rs:10\n"
	for in, want := range map[string]string{
		"":                                     "",
		"exec: no such file":                   "exec: no such file",
		"größer \u2013 ok":                     "größer \u2013 ok",
		"a\n\x1b[31mred\x00\xff\u202e":         "a: ?[31mred???",
		"tab\there":                            "tab here",
		kata:                                   "failed to create container: mount rootfs: ENOENT: No such file or directory",
		"exit status 1:\r\n12: 3\r\n  at a:1 ": "exit status 1: 3: at a:1",
	} {
		if got := Error(in); got != want {
			t.Errorf("Error(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestErrorIsBounded(t *testing.T) {
	for name, long := range map[string]string{
		"ascii":      "what failed " + strings.Repeat("x", 3<<20) + " why",
		"lines":      "what failed\n" + strings.Repeat("y\n", 1<<20) + "why",
		"multi-byte": "what failed " + strings.Repeat("\u00e4\u20ac", 1<<20) + " why",
		"invalid":    "what failed " + strings.Repeat("\xff", 1<<20) + " why",
	} {
		got := Error(long)
		if len(got) > Most || len(got) < Most-100 || !utf8.ValidString(got) || !strings.HasPrefix(got, "what failed") ||
			!strings.HasSuffix(got, "why") {
			t.Errorf("%s: %d bytes, from %.30q to %q", name, len(got), got, got[max(0, len(got)-30):])
		}
	}
}

func TestUTF8KeepsNamesApart(t *testing.T) {
	for in, want := range map[string]string{
		"plain\nlines": "plain\nlines", "caf\xe9": `caf\xe9`, "\xff\xfe": `\xff\xfe`, "\ufffd": "\ufffd",
		strings.Repeat("a", 70): strings.Repeat("a", 64) + " […]",
	} {
		if got := UTF8(in, 64); got != want {
			t.Errorf("UTF8(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzError(f *testing.F) {
	f.Add("a\n0: b\nStack backtrace:\nc")
	f.Add("\xff\x1b[2J\u202e")
	f.Fuzz(func(t *testing.T, in string) {
		defer worktest.Times(t, len(in), 2)()
		got := Error(in)
		if len(got) > Most || !utf8.ValidString(got) {
			t.Errorf("%d bytes of %q", len(got), in)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("Error(%q) keeps %q", in, r)
			}
		}
		if u := UTF8(in, 100); !utf8.ValidString(u) || len(u) > 106 {
			t.Errorf("UTF8(%q) = %q", in, u)
		}
	})
}

// The agent keeps ids of the host's requests in a log: three megabytes of an id must not stay behind 128 bytes of it.
func TestLineKeepsNothingOfTheRest(t *testing.T) {
	const most = 128
	for name, part := range map[string]string{"printable": "x", "not printable": "\x00", "long characters": "€"} {
		long := strings.Repeat(part, 3<<20)
		var kept [16]string
		before := heap()
		for i := range kept {
			kept[i] = Line(long, most)
		}
		if grown := heap() - before; grown > 1<<20 {
			t.Errorf("%s: %d lines of up to %d bytes keep %d bytes", name, len(kept), most, grown)
		}
		if got := kept[0]; len(got) > most || len(got) < most-3 {
			t.Errorf("%s: a line of %d bytes", name, len(got))
		}
		if part == "x" && unsafe.StringData(kept[0]) == unsafe.StringData(long) {
			t.Error("a line is a piece of the long text")
		}
		runtime.KeepAlive(kept)
		runtime.KeepAlive(long)
	}
}

// heap is the memory in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
