// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
)

func sampleEntries() []Entry {
	return []Entry{
		{Path: "usr/bin/prog", Mode: modeRegular | 0o755, Data: []byte("hello")},
		{Path: "usr", Mode: modeDir | 0o755},
		{Path: "bin", Mode: modeSymlink | 0o777, Target: "usr/bin"},
		{Path: "usr/bin", Mode: modeDir | 0o755},
		{Path: "empty", Mode: modeRegular | 0o600},
	}
}

func writeCPIO(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteCPIO(&b, entries); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWriteCPIOMatchesGolden(t *testing.T) {
	// The header of usr/bin/prog, field by field as buffer-format.rst lists them: inode 5, mode, uid, gid, nlink,
	// mtime, filesize, four device numbers, namesize with the NUL, check.
	want := cpioMagic + "00000005" + "000081ed" + strings.Repeat("0", 16) + "00000001" + "00000000" + "00000005" +
		strings.Repeat("0", 32) + "0000000d" + "00000000" + "usr/bin/prog\x00" + "\x00" + "hello\x00\x00\x00"
	got := writeCPIO(t, sampleEntries())
	if !bytes.Contains(got, []byte(want)) {
		t.Errorf("WriteCPIO wrote\n%q\nwithout\n%q", got, want)
	}
	if len(got)%cpioTailAlign != 0 {
		t.Errorf("WriteCPIO wrote %d bytes, not a multiple of %d", len(got), cpioTailAlign)
	}
}

func TestWriteCPIODoesNotDependOnOrder(t *testing.T) {
	entries := sampleEntries()
	a := writeCPIO(t, entries)
	entries[0], entries[4] = entries[4], entries[0]
	if b := writeCPIO(t, entries); !bytes.Equal(a, b) {
		t.Error("two orders of the same entries gave different archives")
	}
}

func TestReadCPIOReturnsWhatWasWritten(t *testing.T) {
	got, err := ReadCPIO(bytes.NewReader(writeCPIO(t, sampleEntries())))
	if err != nil {
		t.Fatal(err)
	}
	s := sampleEntries()
	want := []Entry{s[2], s[4], s[1], s[3], s[0]}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ReadCPIO(WriteCPIO(entries)) (-want +got):\n%s", diff)
	}
}

func TestCPIOToolReadsTheArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("no cpio program")
	}
	cmd := exec.Command("cpio", "-tv", "--quiet", "--numeric-uid-gid")
	cmd.Stdin = bytes.NewReader(writeCPIO(t, sampleEntries()))
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio -tv: %v: %s", err, out)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		got = append(got, f[0]+" "+f[2]+":"+f[3]+" "+f[4]+" "+f[7]+" "+strings.Join(f[8:], " "))
	}
	want := []string{
		"lrwxrwxrwx 0:0 7 1970 bin -> usr/bin",
		"-rw------- 0:0 0 1970 empty",
		"drwxr-xr-x 0:0 0 1970 usr",
		"drwxr-xr-x 0:0 0 1970 usr/bin",
		"-rwxr-xr-x 0:0 5 1970 usr/bin/prog",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cpio -tv (-want +got):\n%s", diff)
	}
}

func TestWriteCPIORefuses(t *testing.T) {
	file := func(name string) Entry { return Entry{Path: name, Mode: modeRegular | 0o644} }
	for _, tt := range []struct {
		name string
		in   []Entry
		want string
	}{
		{"an absolute path", []Entry{file("/init")}, "clean relative path"},
		{"a path that climbs", []Entry{file("../init")}, "clean relative path"},
		{"an empty path", []Entry{file("")}, "clean relative path"},
		{"the same path twice", []Entry{file("a"), file("a")}, "given twice"},
		{"a file without its directory", []Entry{file("a/b")}, "no directory entry"},
		{"a file below a file", []Entry{file("a"), file("a/b")}, "no directory entry"},
		{"a device", []Entry{{Path: "a", Mode: 0o020600}}, "no file, directory or link"},
		{"a link without a target", []Entry{{Path: "a", Mode: modeSymlink}}, "content does not fit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := WriteCPIO(&bytes.Buffer{}, tt.in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("WriteCPIO(%v) = %v, want an error with %q", tt.in, err, tt.want)
			}
		})
	}
}

func TestReadCPIORefuses(t *testing.T) {
	good := writeCPIO(t, sampleEntries())
	change := func(at int, with string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, "unexpected EOF"},
		{"another magic", change(0, "070702"), "magic"},
		{"an owner", change(6+8*2, "00000001"), "owner, time"},
		{"a field that is no number", change(6+8*6, "zzzzzzzz"), "header field 6"},
		{"a size beyond the end", change(6+8*6, "0fffffff"), "unexpected EOF"},
		{"a huge size", change(6+8*6, "ffffffff"), "out of bounds"},
		{"a second archive", append(bytes.Clone(good), good...), "behind its end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadCPIO(bytes.NewReader(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ReadCPIO = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestCompressionIsReproducibleAndReversible(t *testing.T) {
	cpio := writeCPIO(t, append(sampleEntries(),
		Entry{Path: "big", Mode: modeRegular, Data: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)}))
	for _, c := range []Compression{CompressNone, CompressZstd, CompressGzip} {
		t.Run(string(c), func(t *testing.T) {
			a, err := c.compress(cpio)
			if err != nil {
				t.Fatal(err)
			}
			b, err := c.compress(cpio)
			if err != nil || !bytes.Equal(a, b) {
				t.Errorf("compressing twice: error %v, equal %v", err, bytes.Equal(a, b))
			}
			entries, err := readInitrd(bytes.NewReader(a))
			if err != nil || len(entries) != 6 {
				t.Errorf("readInitrd = %d entries, %v, want 6", len(entries), err)
			}
		})
	}
}

func FuzzReadCPIO(f *testing.F) {
	f.Add(writeCPIO(f, sampleEntries()))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		entries, err := ReadCPIO(bytes.NewReader(in))
		if err != nil {
			return
		}
		for _, e := range entries {
			if err := e.check(); err != nil {
				t.Errorf("ReadCPIO let through %v", err)
			}
			if strings.HasPrefix(filepath.Clean(e.Path), "..") {
				t.Error(fmt.Sprint("climbing path ", e.Path))
			}
		}
	})
}
