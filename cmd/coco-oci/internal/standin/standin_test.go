// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPlacesThatCannotBeMadeAreNotLeft: the third one is taken.
func TestPlacesThatCannotBeMadeAreNotLeft(t *testing.T) {
	p := Process{Dir: t.TempDir(), Exec: "x1"}
	taken := p.places().Stderr
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if at, err := p.Places(); err == nil {
		t.Errorf("Places() = %v, though %s was there", at, taken)
	}
	left, err := filepath.Glob(filepath.Join(p.Dir, "*"))
	if err != nil || len(left) != 1 || left[0] != taken {
		t.Errorf("left are %q, %v, want only %s", left, err, taken)
	}
	if err := os.Remove(taken); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Places(); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(p.Dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("after Remove there are %q, %v", left, err)
	}
}
