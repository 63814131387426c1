// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata

import (
	"maps"
	"testing"

	"github.com/BurntSushi/toml"
	"pgregory.net/rapid"
)

func TestWhatIsWrittenIsReadByAnotherReaderToo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.SampledFrom([]string{"a", "'", "''", "'''", `"`, `\`, "\n", "\t", "\r", "\x00", "\x7f", "€", "{"})
		files := map[string]string{}
		for range rapid.IntRange(0, 3).Draw(t, "files") {
			text := ""
			for range rapid.IntRange(0, 12).Draw(t, "pieces") {
				text += piece.Draw(t, "piece")
			}
			files[rapid.StringMatching(`[a-z"' ][a-z"' .]{0,4}x`).Draw(t, "name")] = text
		}
		d, err := New("sha384", files)
		if err != nil {
			t.Fatal(err)
		}
		var other struct {
			Version, Algorithm string
			Data               map[string]string
		}
		if err := toml.Unmarshal(d.Text, &other); err != nil {
			t.Fatalf("%s: %v", d.Text, err)
		}
		if !maps.Equal(other.Data, files) || other.Version != "0.1.0" || other.Algorithm != "sha384" {
			t.Errorf("%s is read as %v, want %v", d.Text, other.Data, files)
		}
		value, err := d.Annotation()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := FromAnnotation(value); err != nil || !maps.Equal(back.Data, files) {
			t.Errorf("FromAnnotation = %v, %v", back, err)
		}
	})
}
