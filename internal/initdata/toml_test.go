// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/worktest"
)

// TestReadsWhatPythonReads compares with testdata/tomllib.json, which Python's tomllib and hashlib made.
func TestReadsWhatPythonReads(t *testing.T) {
	raw, err := os.ReadFile("testdata/tomllib.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Vectors []struct {
			Name, Text, Algorithm, Digest string
			Data                          map[string]string
		}
	}
	if err := json.Unmarshal(raw, &golden); err != nil || len(golden.Vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(golden.Vectors), err)
	}
	for _, v := range golden.Vectors {
		d, err := initdata.FromText([]byte(v.Text))
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		if diff := cmp.Diff(v.Data, d.Data); diff != "" || d.Algorithm != v.Algorithm ||
			hex.EncodeToString(d.Digest()) != v.Digest {
			t.Errorf("%s: algorithm %s, digest %x, data (-want +got):\n%s", v.Name, d.Algorithm, d.Digest(), diff)
		}
		checkAgainstLibrary(t, d)
	}
}

// checkAgainstLibrary compares a valid document with what a whole TOML reader makes of it.
func checkAgainstLibrary(t *testing.T, d *initdata.Document) {
	t.Helper()
	var doc struct {
		Version, Algorithm string
		Data               map[string]string
	}
	// It keeps the CR of lines within strings, which TOML leaves open; Rust's and Python's readers do not.
	if _, err := toml.Decode(strings.ReplaceAll(string(d.Text), "\r\n", "\n"), &doc); err != nil {
		t.Errorf("the library refuses %q: %v", d.Text, err)
		return
	}
	if doc.Data == nil {
		doc.Data = map[string]string{}
	}
	if diff := cmp.Diff(doc.Data, d.Data); diff != "" || strings.Replace(doc.Algorithm, "sha-", "sha", 1) != d.Algorithm {
		t.Errorf("%q: the library reads algorithm %s, data (-library +ours):\n%s", d.Text, doc.Algorithm, diff)
	}
}

// valid writes a valid document.
func valid(r *rand.Rand) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	blank := func() string { return pick("", "", " ", "\t", "  ") }
	end := func() string { return blank() + pick("", "", "# c 'x' \"\"\" ü") + pick("\n", "\n", "\r\n", "\n\n") }
	var b strings.Builder
	add := func(key, value string) { b.WriteString(blank() + key + blank() + "=" + blank() + value + end()) }
	pieces := func(n int, of ...string) (s string) {
		for range r.IntN(n) {
			s += pick(of...)
		}
		return s
	}
	value := func() string {
		switch r.IntN(4) {
		case 0:
			return "'" + pieces(9, "a", " ", `\`, `"`, "#", "€", "\t", "=", "[x]") + "'"
		case 1:
			return `"` + pieces(9, "a", " ", `\n`, `\"`, `\\`, `\u00e9`, `\U0001f600`, "'", "#", "€", "[x]") + `"`
		case 2:
			return "'''" + pieces(2, "\n", "\r\n") + pieces(12, "a", "'b", "''c", `\`, "\n", "\r\n", "#", `"""`, "€") + pick("",
				"'", "''") + "'''"
		}
		return `"""` + pieces(2, "\n", "\r\n") + pieces(12, "a", `"b`, `""c`, `\\`, `\t`, "\\\n  ", "\\ \r\n\n\t", "\n",
			"\r\n", "#", "'''", "€") + pick("", `"`, `""`) + `"""`
	}
	add(pick("version", `"version"`, "'version'"), pick(`"0.1.0"`, "'0.1.0'", `"""0.1.0"""`, `"0.\u0031.0"`))
	add("algorithm", pick(`"sha256"`, "'sha-384'", "'''\nsha512'''"))
	b.WriteString(blank() + pick("[data]", "[ data\t]", `["data"]`) + end())
	for i := range r.IntN(6) {
		add(pick(fmt.Sprintf("f-%d", i), fmt.Sprintf("'f %d.toml'", i), fmt.Sprintf(`"f\u002d%d"`, i)), value())
	}
	return b.String()
}

func TestReadsWhatTheLibraryReads(t *testing.T) {
	for seed := range uint64(3000) {
		text := valid(rand.New(rand.NewPCG(seed, 1)))
		d, err := initdata.FromText([]byte(text))
		if err != nil {
			t.Fatalf("seed %d: %q: %v", seed, text, err)
		}
		if checkAgainstLibrary(t, d); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestRefusesWhatTheFormatLacks(t *testing.T) {
	const head = "version = '0.1.0'\nalgorithm = 'sha256'\n"
	for _, tt := range []struct{ name, text, want string }{
		{"another table", head + "[more]\n", `line 3 begins the table "more"`},
		{"a table below", head + "[data.x]\n", "line 3 begins the table"},
		{"the table twice", head + "[data]\n[data]\n", "line 4 begins a second table"},
		{"a list of tables", head + "[[data]]\n", "list of tables"},
		{"an open table", head + "[data\n", "where the ] of [data] should be"},
		{"a dotted key", head + "data.x = 'y'\n", `dotted key that begins with "data"`},
		{"a dotted key with blanks", head + "[data]\na . b = 'y'\n", "dotted key"},
		{"an inline table", head + "data = {a = 'x'}\n", `"data" that is not a string`},
		{"a list", head + "[data]\na = ['x']\n", "not a string"},
		{"a key twice", head + "[data]\na = 'x'\n\"\\u0061\" = 'y'\n", `line 5 has the key "a" a second time`},
		{"a key twice above", head + "version = '0.1.0'\n", `the key "version" a second time`},
		{"no value", head + "[data]\na =\n", "not a string"},
		{"no =", head + "[data]\na 'x'\n", `no = after the key "a"`},
		{"no key", head + "[data]\n= 'x'\n", "where a key should be"},
		{"a key over lines", head + "[data]\n\"\"\"a\"\"\" = 'x'\n", `no = after the key ""`},
		{"two pairs on a line", head + "[data]\na = 'x' b = 'y'\n", "line 4 goes on with \"b = 'y'\""},
		{"an open literal", head + "[data]\na = 'x\n", "control character 0x0a"},
		{"an open text", head + "[data]\na = \"x\n", "control character 0x0a"},
		{"an open literal of lines", head + "[data]\na = '''x\n''\n", "no end"},
		{"an open text of lines", head + "[data]\na = \"\"\"x\n\"\"\n", "no end"},
		{"six quotes at the end", head + "[data]\na = '''x''''''\n", "goes on"},
		{"an unknown escape", head + "[data]\na = \"\\x41\"\n", `which is no escape`},
		{"an escape of TOML 1.1", head + "[data]\na = \"\\e\"\n", `which is no escape`},
		{"half a pair", head + "[data]\na = \"\\ud800\"\n", "surrogate"},
		{"no character", head + "[data]\na = \"\\UFFFFFFFF\"\n", "names no character"},
		{"few digits", head + "[data]\na = \"\\u12\"\n", "4 hexadecimal digits"},
		{"a backslash at the end", head + "[data]\na = \"\\", "ends the text"},
		{"a lone CR", head + "[data]\na = '''x\ry'''\n", "control character 0x0d"},
		{"a lone CR after a pair", head + "[data]\na = 'x'\r", "goes on"},
		{"a NUL", head + "[data]\na = 'x\x00'\n", "control character 0x0"},
		{"a NUL in a comment", head + "# \x00\n", "comment with the control character"},
		{"a byte order mark", "\ufeff" + head, "where a key should be"},
		{"no UTF-8", head + "[data]\na = '\xff'\n", "not UTF-8"},
		{"a long key", head + "[data]\n" + strings.Repeat("k", 256) + " = 'x'\n", "more than 255 bytes"},
		{"a name with a newline", head + "[data]\n\"a\\nb\" = 'x'\n", "no plain name"},
		{"a name with a direction", head + "[data]\n\"a\\u202eb\" = 'x'\n", "no plain name"},
		{"no name", head + "[data]\n'' = 'x'\n", "no plain name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := initdata.FromText([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FromText(%q) = %v, %v, want an error with %q", tt.text, d, err, tt.want)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// TestShortAnnotationsTakeLittleWork: nested keys took 4 GiB and half a minute with a whole TOML reader.
func TestShortAnnotationsTakeLittleWork(t *testing.T) {
	const head, n = "version = '0.1.0'\nalgorithm = 'sha256'\n", 100_000
	for name, text := range map[string]string{
		"table path":          "[" + strings.Repeat("a.", n) + "a]\n",
		"dotted key":          strings.Repeat("a.", n) + "a = 1",
		"dotted and quoted":   strings.Repeat("'a' .", n) + "a = 1",
		"inline tables":       "a = " + strings.Repeat("{a=", n),
		"lists":               "a = " + strings.Repeat("[", n),
		"keys":                head + "[data]\n" + strings.Repeat("a=''\n", n),
		"other keys":          head + "[data]\n" + numbered(n, "a%d=''\n"),
		"tables":              strings.Repeat("[data]\n", n),
		"quotes":              head + "[data]\na = \"\"\"" + strings.Repeat("\"\"x", n),
		"literal quotes":      head + "[data]\na = '''" + strings.Repeat("''x", n),
		"continued lines":     head + "[data]\na = \"\"\"" + strings.Repeat("\\\n", n),
		"backslash, no line":  head + "[data]\na = \"\"\"\\" + strings.Repeat(" ", n) + "x\"\"\"",
		"escapes":             head + "[data]\na = \"" + strings.Repeat(`\u0041`, n),
		"empty lines":         strings.Repeat("\n", n),
		"blanks":              strings.Repeat(" ", n),
		"comments":            strings.Repeat("#\n", n),
		"a long key":          strings.Repeat("k", n),
		"a long quoted key":   `"` + strings.Repeat("k", n) + `" = ''`,
		"a long version":      "version = '" + strings.Repeat("k", n) + "'\n",
		"a number's digits":   "a = 0x" + strings.Repeat("1", n),
		"control characters":  strings.Repeat("\x00", n),
		"a multi-line at end": "a = \"\"\"\n" + strings.Repeat("\\ \n \t", n),
	} {
		t.Run(name, func(t *testing.T) {
			value := annotation(t, text)
			// The text's own size is what its work may follow; the annotation is some hundred bytes.
			defer worktest.Bound(t, len(value))()
			if _, err := initdata.FromAnnotation(value); err == nil || len(err.Error()) > 400 {
				t.Errorf("FromAnnotation = %.500v, want a short error", err)
			}
		})
	}
}

func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// emptyBlocks is the beginning of a gzip stream: blocks without a byte, each with code tables (RFC 1951, 3.2.7).
func emptyBlocks(n int) []byte {
	var bits strings.Builder // in the order of the stream
	put := func(v, n int) {
		for i := range n {
			bits.WriteByte(byte('0' + v>>i&1))
		}
	}
	for range n {
		put(0b100, 3) // not the last, with codes of its own
		put(0, 5+5)   // 257 codes of literals, 1 of distances
		put(14, 4)    // the lengths of 18 codes of lengths: 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1
		for _, l := range []int{0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2} {
			put(l, 3)
		}
		put(0, 1) // code 0: a run
		put(138-11, 7)
		put(0, 1)
		put(117-11, 7)
		bits.WriteString("11" + "11" + "10") // code 11: length 1, of 255 and 256; code 10: length 0, no distances
		put(1, 1)                            // the end of the block
	}
	out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	for text := bits.String(); len(text) >= 8; text = text[8:] {
		var b byte
		for i := range 8 {
			b |= (text[i] - '0') << i
		}
		out = append(out, b)
	}
	return out
}

func TestEmptyBlocksAreNotReadToTheEnd(t *testing.T) {
	for n, want := range map[int]string{100: "unexpected EOF", 20_000: "the stream is much longer than its text"} {
		if _, err := initdata.FromGzip(emptyBlocks(n)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("FromGzip of %d empty blocks = %v, want %q", n, err, want)
		}
	}
}
