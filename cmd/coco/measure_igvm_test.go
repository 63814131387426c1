// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

func TestMeasureIGVM(t *testing.T) {
	fw := ovmftest.Build(ovmftest.Layout{Size: 64 << 10, Seed: 1, EIP: 0x80b004, SEV: ovmftest.Sections()})
	raw, err := snp.ComposeIGVM(snp.IGVMContents{Policy: idblock.DefaultPolicy, Firmware: fw, Signature: 0x800f12, Features: 1})
	if err != nil {
		t.Fatal(err)
	}
	file, image := write(t, "guest.igvm", raw), write(t, "fw.fd", fw)
	want, _, err := measure(t, "snp", "--firmware", image, "--vcpus", "1", "--cpu-model", "EPYC-v4")
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := measure(t, "igvm", file); err != nil || got != want {
		t.Errorf("measure igvm = %q, %v, want %q", got, err, want)
	}
	if got, _, err := measure(t, "igvm", file, "--loader", "igvmmeasure"); err != nil || got == want || len(got) != 97 {
		t.Errorf("measure igvm --loader igvmmeasure = %q, %v", got, err)
	}
	if got, _, err := measure(t, "igvm", file, "--list"); err != nil || strings.Count(got, "PAGE_DATA") != 16+31 {
		t.Errorf("measure igvm --list = %q, %v", got, err)
	}
	for name, args := range map[string][]string{
		"no file":          {"igvm"},
		"missing file":     {"igvm", "/nonexistent"},
		"another file":     {"igvm", image},
		"unknown loader":   {"igvm", file, "--loader", "x"},
		"kernel elsewhere": {"igvm", file, "--loader", "igvmmeasure", "--kernel", image},
	} {
		if out, _, err := measure(t, args...); err == nil || out != "" {
			t.Errorf("%s: measure = %q, %v, want a refusal", name, out, err)
		}
	}
}
