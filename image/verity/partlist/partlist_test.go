// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package partlist

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAListIsReadAsItWasWritten(t *testing.T) {
	lines := []Line{
		{Name: "part-rego", RootHash: strings.Repeat("0a", 32), Blocks: 1},
		{Name: "part-trust", RootHash: strings.Repeat("ff", 32), Blocks: 1 << 20},
	}
	got, err := Parse(Write(lines))
	if d := cmp.Diff(lines, got); err != nil || d != "" {
		t.Errorf("Parse() = %v, %s", err, d)
	}
	p := got[1].Params()
	if p.Hex() != lines[1].RootHash || p.DataBlocks != 1<<20 || p.HashOffset != 1<<32 || p.Validate() != nil {
		t.Errorf("Params() = %+v", p)
	}
	if got, err := Parse(nil); err != nil || got != nil {
		t.Errorf("Parse of nothing = %v, %v", got, err)
	}
}

func TestWhatIsNoList(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	for name, text := range map[string]string{
		"no hash":           "part-trust 1\n",
		"a short hash":      "part-trust 0a 1\n",
		"a path":            "part-../x " + hash + " 1\n",
		"a long name":       "part-" + strings.Repeat("x", 16) + " " + hash + " 1\n",
		"another name":      "trust " + hash + " 1\n",
		"no blocks":         "part-trust " + hash + " 0\n",
		"a negative number": "part-trust " + hash + " -1\n",
		"an empty line":     "\n",
		"many lines":        strings.Repeat("part-trust "+hash+" 1\n", maxLines+1),
	} {
		if got, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: Parse() = %v", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("part-trust " + strings.Repeat("0a", 32) + " 12\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		lines, err := Parse(text)
		if err != nil {
			return
		}
		for _, l := range lines {
			if err := l.Params().Validate(); err != nil {
				t.Errorf("%+v: %v", l, err)
			}
		}
	})
}
