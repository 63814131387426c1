// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What an engine writes is told from what the guest has sent, whichever came last.
func TestWhatAnEngineWritesIsNotTheGuests(t *testing.T) {
	p, _ := watched(t, func() error { return nil })
	written := func(want ...string) {
		t.Helper()
		w, err := p.Written()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Dir.Close()
		var got []string
		for _, e := range w.Entries {
			got = append(got, e.Rel)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || len(w.Left) > 0 {
			t.Errorf("Written() = %q and %q, want %q", got, w.Left, want)
		}
		p.Took(w)
	}
	engine := func(name, text string) {
		t.Helper()
		name = filepath.Join(p.upper(), name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	written() // what was there before
	sent := stream(t, dir(""), file("f"), dir("d"), file("g"), leave, leave)
	if _, err := p.Bring(bytes.NewReader(sent), small); err != nil {
		t.Fatal(err)
	}
	written()
	engine("f", "more")
	engine("d/h", "x")
	engine("olddir/new/f", "x")
	engine("etc/resolv.conf", "")
	engine(".pivot_root1/x", "")
	written("d", "d/h", "etc", "f", "olddir", "olddir/new", "olddir/new/f")
	if err := os.Chtimes(filepath.Join(p.upper(), "d"), time.Time{}, time.Unix(1e9, 0)); err != nil { // tar does it last
		t.Fatal(err)
	}
	written("d")
	engine("d/i", "x")
	if err := os.Chtimes(filepath.Join(p.upper(), "d"), time.Time{}, time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	written("d", "d/i") // the guest's d has a new time
	engine("old", "changed")
	written("old")
}
