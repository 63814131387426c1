// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measurement_test

import (
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/coco-shim/coco/measurement"
)

// These packages are pure: an auditor finds nothing but the standard library, and nothing that reads files,
// clocks, the environment or the network.
func TestImportsArePure(t *testing.T) {
	banned := []string{
		"os", "os/exec", "time", "net", "net/http", "path/filepath", "math/rand", "math/rand/v2",
		"crypto/rand", "unsafe", "reflect", "log", "log/slog", "syscall",
	}
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
			strings.Contains(path, "test/") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			name := strings.Trim(i.Path.Value, `"`)
			ours := strings.HasPrefix(name, "github.com/coco-shim/coco/measurement")
			first, _, _ := strings.Cut(name, "/")
			if strings.Contains(first, ".") && !ours || slices.Contains(banned, name) || strings.HasSuffix(name, "test") {
				t.Errorf("%s imports %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDigestText(t *testing.T) {
	want := measurement.Digest(make([]byte, 48))
	want[0] = 0xab
	b, err := json.Marshal(want)
	var got measurement.Digest
	if err != nil || json.Unmarshal(b, &got) != nil || !got.Equal(want) {
		t.Errorf("digest through JSON = %s, %v, want %s", got, err, want)
	}
	for _, s := range []string{"", "ab", "zz", strings.Repeat("0", 95), strings.Repeat("0", 98)} {
		if d, err := measurement.ParseDigest(s); err == nil {
			t.Errorf("ParseDigest(%q) = %s, want a refusal", s, d)
		}
	}
	if measurement.Digest(nil).Equal(nil) {
		t.Error("no digest equals no digest; that would accept an absent measurement")
	}
}

func step(source string, gpa uint64, content byte) measurement.Step {
	return measurement.Step{
		Register: "launch", Source: source, Kind: "NORMAL", GPA: gpa, Size: 4096,
		Content: []byte{content},
	}
}

func TestDiff(t *testing.T) {
	base := []measurement.Step{step("a", 0, 1), step("a", 1, 2), step("b", 0, 3), step("c", 0, 4)}
	other := func(change func([]measurement.Step) []measurement.Step) *measurement.Trace {
		return &measurement.Trace{Steps: change(slices.Clone(base))}
	}
	for _, tt := range []struct {
		name string
		b    *measurement.Trace
		want []measurement.Change
	}{
		{"nothing", other(func(s []measurement.Step) []measurement.Step { return s }), nil},
		{
			"content", other(func(s []measurement.Step) []measurement.Step { s[1].Content = []byte{9}; return s }),
			[]measurement.Change{measurement.Content},
		},
		{
			"kind", other(func(s []measurement.Step) []measurement.Step { s[1].Kind = "ZERO"; return s }),
			[]measurement.Change{measurement.Kind},
		},
		{
			"missing", other(func(s []measurement.Step) []measurement.Step { return s[:3] }),
			[]measurement.Change{measurement.OnlyInA},
		},
		{
			"additional", other(func(s []measurement.Step) []measurement.Step { return append(s, step("d", 0, 1)) }),
			[]measurement.Change{measurement.OnlyInB},
		},
		{
			"order", other(func(s []measurement.Step) []measurement.Step { return []measurement.Step{s[0], s[2], s[3], s[1]} }),
			[]measurement.Change{measurement.Moved},
		},
		{"everything", &measurement.Trace{}, slices.Repeat([]measurement.Change{measurement.OnlyInA}, 4)},
	} {
		var got []measurement.Change
		for _, d := range measurement.Diff(&measurement.Trace{Steps: base}, tt.b) {
			got = append(got, d.Change)
			if d.String() == "" {
				t.Errorf("%s: a difference without words", tt.name)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestDiffIsEmptyExactlyForEqualTraces(t *testing.T) {
	draw := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) measurement.Step {
		return step(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "source"), rapid.Uint64Range(0, 2).Draw(t, "gpa"),
			rapid.ByteRange(0, 1).Draw(t, "content"))
	}), 0, 6)
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw.Draw(t, "a"), draw.Draw(t, "b")
		empty := len(measurement.Diff(&measurement.Trace{Steps: a}, &measurement.Trace{Steps: b})) == 0
		if equal := fmt.Sprint(a) == fmt.Sprint(b); empty != equal {
			t.Fatalf("Diff is empty = %v, traces are equal = %v", empty, equal)
		}
	})
}

func TestNilTraceRecordsNothing(t *testing.T) {
	var tr *measurement.Trace
	tr.Add(step("a", 0, 1))
	if d := measurement.Diff(nil, nil); len(d) != 0 {
		t.Errorf("Diff(nil, nil) = %v", d)
	}
}
