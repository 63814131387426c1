// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"strings"
	"testing"

	"github.com/coco-shim/coco/measurement/tdx"
)

func TestProfilesAreReadStrictly(t *testing.T) {
	for s, want := range map[string]string{
		"":                              "is not of the form",
		"edk2-stable202508":             "is not of the form",
		"edk2-stable202508+qemu-11":     "is not of the form",
		"edk2-stable202508+qemu-.":      "is not of the form",
		"edk2-stable20250+qemu-11.0":    "is not of the form",
		"edk2-stable2025080+qemu-11.0":  "is not of the form",
		"edk2-stable+20258+qemu-11.0":   "is not of the form",
		"edk2-stable202508+qemu-+1.0":   "is not of the form",
		"edk2-stable202508+qemu-111.0":  "is not of the form",
		"edk2-stable202508+qemu-11.0.1": "is not of the form",
		" edk2-stable202508+qemu-11.0":  "is not of the form",
		"edk2-stable202508+qemu-11.٣":   "is not of the form",
		"edk2-stable202108+qemu-11.0":   "are known",
		"edk2-stable202508+qemu-7.2":    "are known",
		"edk2-stable202508+qemu-12.0":   "are known",
	} {
		if p, err := tdx.ParseProfile(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseProfile(%q) = %v, %v, want an error with %q", s, p, err, want)
		}
	}
	if p, err := tdx.ParseProfile("edk2-stable202508+qemu-11.0"); err != nil ||
		p != (tdx.Profile{EDK2: 202508, QEMUMajor: 11}) {
		t.Errorf("ParseProfile = %+v, %v", p, err)
	}
}
