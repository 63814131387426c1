// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ident

import (
	"regexp"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/worktest"
)

var (
	idForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	deviceForm = regexp.MustCompile(DeviceForm)
)

func FuzzForms(f *testing.F) {
	for _, s := range []string{
		"", "a", "-a", "a-", "a\n", "Ä", "a/b", "..", "0_.-", strings.Repeat("a", 20),
		strings.Repeat("a", 21), strings.Repeat("a", 128), strings.Repeat("a", 129),
	} {
		f.Add(s)
	}
	for c := range 256 {
		f.Add("x" + string([]byte{byte(c)}))
		f.Add(string([]byte{byte(c)}))
	}
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		if got, want := ID(s), idForm.MatchString(s); got != want {
			t.Errorf("ID(%q) = %v, want %v", s, got, want)
		}
		if got, want := Device(s), deviceForm.MatchString(s); got != want {
			t.Errorf("Device(%q) = %v, want %v", s, got, want)
		}
	})
}
