// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deptest

import "testing"

// "a/..." and "a/bcd" are of one length.
func TestAPackagesOwnEdgesCount(t *testing.T) {
	e := Edges{"a/...": {"x"}, "a/bcd": {"y"}, "a/b/...": {"z"}}
	for pkg, want := range map[string]string{"a": "a/...", "a/bcd": "a/bcd", "a/b/c": "a/b/...", "b": ""} {
		for range 20 { // maps are walked in another order each time
			if got, _ := e.lookup(pkg); got != want {
				t.Fatalf("the edges of %s are those of %q, want %q", pkg, got, want)
			}
		}
	}
}
