// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"testing"

	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
)

// A launch is refused exactly if it has no digest.
func TestSNPLaunchProblemAgreesWithPrepare(t *testing.T) {
	move := func(i int, gpa, size uint32) []ovmf.Section {
		s := ovmftest.Sections()
		s[i].GPA, s[i].Size = gpa, size
		return s
	}
	for _, sections := range [][]ovmf.Section{
		nil, ovmftest.Sections(), ovmftest.Sections()[:6], move(6, 0x900000, 0x1000), move(6, 0x810000, 0x2000),
		move(6, 0x810000, 0), move(6, 0x820000, 0x20000),
		append(ovmftest.Sections(), ovmf.Section{GPA: 0x820000, Size: 0x1000, Type: ovmf.KernelHashes}),
		move(1, 0x80a001, 0x1000), move(1, 0x800000, 0x1000), move(5, 0x820000, 0xf000), move(6, 0xffff0000, 0x1000),
	} {
		for _, base := range []uint32{0, 0x810000, 0x810c00, 0x810f50, 0x810f51, 0x900000} {
			for _, size := range []uint32{0, 175, 176} { // 0: the default
				for _, eip := range []uint32{0, 0x80b004} {
					fw := ovmftest.Build(ovmftest.Layout{
						Size: 64 << 10, Seed: 3, EIP: eip, HashBase: base, HashSize: size,
						SEV: sections,
					})
					for _, direct := range []bool{false, true} {
						d := Description{Firmware: fw, Features: FeatureSNPActive}
						if direct {
							d.Kernel = &kernelhashes.Hashes{}
						}
						_, want := Prepare(d)
						im, got := ovmf.Parse(fw)
						if got == nil {
							got = im.SNPLaunchProblem(direct)
						}
						if (got == nil) != (want == nil) {
							t.Errorf("sections %v, area %#x+%d, eip %#x, kernel %v: SNPLaunchProblem = %v, Prepare = %v", sections, base,
								size, eip, direct, got, want)
						}
					}
				}
			}
		}
	}
}
