// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package textedit

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var line = rapid.SampledFrom([]string{
	"", "# a comment", "version = 2", "  version = 3 # indented", "imports = [\"/a/*.toml\"]", "imports=[]",
	"oom_score = 0",
	"disabled_plugins = [\"cri\", \"zfs\"]", "[plugins]", "  [plugins.cri]", "x = \"[no table\"", "\ttab\r",
})

var text = rapid.Custom(func(t *rapid.T) []byte {
	return []byte(strings.Join(rapid.SliceOfN(line, 0, 8).Draw(t, "lines"), "\n"))
})

// Whatever is added, and in whichever order, taking it out leaves the bytes of before.
func TestStripUndoesEveryEdit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := text.Draw(t, "text")
		now := before
		kind := rapid.SampledFrom([]string{"append", "insert", "replace", "array"})
		for _, edit := range rapid.SliceOfN(kind, 1, 4).Draw(t, "edits") {
			var err error
			next := now
			switch edit {
			case "append":
				next = Append(now, "[plugins.x]\n  a = 1\n")
			case "insert":
				next = Insert(now, "imports = []\n")
			case "replace":
				next, err = Replace(now, "disabled_plugins", "disabled_plugins = []\n")
			case "array":
				next, err = AddToArray(now, "imports", `"/ours.toml"`)
			}
			if err == nil && edit != "array" || err == nil && !bytes.Contains(now, []byte("/ours.toml")) {
				now = next
			}
			if edit == "replace" {
				break // a second one would replace lines that were added
			}
		}
		back, err := Strip(now)
		if err != nil {
			t.Fatal(err)
		}
		if back = RemoveFromArray(back, "imports", `"/ours.toml"`); !bytes.Equal(back, before) {
			t.Fatalf("of %q became %q and back %q", before, now, back)
		}
	})
}

func TestAFileThatWasNotThere(t *testing.T) {
	now := Append(nil, "a = 1\n")
	if back, err := Strip(now); err != nil || back != nil {
		t.Errorf("Strip = %q, %v, want no file", back, err)
	}
	edited := append(bytes.Clone(now), "b = 2\n"...)
	if back, err := Strip(edited); err != nil || string(back) != "b = 2\n" {
		t.Errorf("Strip of one that somebody else wrote to = %q, %v", back, err)
	}
	if _, err := Strip([]byte(begin + "\na = 1\n")); err == nil {
		t.Error("a begin without an end is taken")
	}
}

func TestEditsThatCannotBe(t *testing.T) {
	if _, err := Replace([]byte("[t]\ndisabled_plugins = []\n"), "disabled_plugins", ""); err == nil {
		t.Error("Replace changes a key of a table")
	}
	if _, err := AddToArray([]byte("[t]\nimports = []\n"), "imports", "1"); err == nil {
		t.Error("AddToArray changes a key of a table")
	}
}
