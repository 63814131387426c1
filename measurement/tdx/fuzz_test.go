// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"crypto/sha512"
	"encoding/binary"
	"testing"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/tdx"
)

func FuzzAuthenticode(f *testing.F) {
	f.Add(bzImage())
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		h := sha512.New384()
		if err := tdx.Authenticode(b, h); err == nil && len(b) < 0x40 {
			t.Error("an image without headers was hashed")
		}
		d := tdx.Description{
			Profile: tdx.Profile{EDK2: 202408, QEMUMajor: 9}, Kernel: tdx.Content{Data: b},
			Initrd: content("x"), Memory: 1 << 30,
		}
		_, _ = tdx.RTMR1(d, nil)
	})
}

// FuzzFirmware covers TDX metadata and variable stores.
func FuzzFirmware(f *testing.F) {
	small := ovmftest.Build(ovmftest.Layout{Size: 16 << 10, TDX: ovmftest.TDXSections(16 << 10)})
	cfv := emptyCFV(f)[:4096]
	binary.LittleEndian.PutUint32(cfv[0x48+16:], 4096-0x48)
	copy(small, cfv)
	f.Add(small)
	f.Fuzz(func(t *testing.T, tail []byte) {
		defer worktest.Bound(t, len(tail))()
		fw := append(make([]byte, (4096-len(tail)%4096)%4096), tail...)
		d := tdx.Description{
			Profile: tdx.Profile{EDK2: 202408, QEMUMajor: 10, QEMUMinor: 1}, Firmware: fw, Memory: 2 << 30,
			ACPI: &tdx.ACPI{Loader: content("a"), RSDP: content("b"), Tables: content("c")},
		}
		_, _ = tdx.RTMR0(d, nil)
		if len(fw) <= 64<<10 {
			_, _ = tdx.MRTD(fw, tdx.TwoPass, nil, nil)
		}
	})
}

func BenchmarkMRTD(b *testing.B) {
	fw := image(b, emptyCFV(b))
	for b.Loop() {
		must(b)(tdx.MRTD(fw, tdx.SinglePass, nil, nil))
	}
}
