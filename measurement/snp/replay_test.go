// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"crypto/sha512"
	"encoding/binary"
	"testing"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
)

// replay computes the digest from the steps of a trace alone, written from the AMD specification
// and sharing no code with the package.
func replay(t measurement.Trace) measurement.Digest {
	kinds := map[string]byte{"NORMAL": 1, "VMSA": 2, "ZERO": 3, "UNMEASURED": 4, "SECRETS": 5, "CPUID": 6}
	ld := make([]byte, 48)
	for _, s := range t.Steps {
		if s.Kind == "SEED" {
			ld = s.After
			continue
		}
		content := append([]byte(nil), s.Content...)
		info := append(append([]byte(nil), ld...), append(content, make([]byte, 48-len(content))...)...)
		info = append(info, 0x70, 0, kinds[s.Kind], 0, 0, 0, 0, 0)
		info = binary.LittleEndian.AppendUint64(info, s.GPA)
		h := sha512.Sum384(info)
		ld = h[:]
	}
	return ld
}

func big() ovmftest.Layout {
	l := layout()
	l.Size = 4 << 20
	return l
}

// BenchmarkCold is a whole computation in process: 4 MiB of firmware, metadata, hashes, processors.
func BenchmarkCold(b *testing.B) {
	for name, n := range map[string]int{"1vcpu": 1, "255vcpus": 255} {
		b.Run(name, func(b *testing.B) {
			d := description(ovmftest.Build(big()))
			d.VCPUs = n
			for b.Loop() {
				mustMeasure(b, d)
			}
		})
	}
}

// BenchmarkWarm has the firmware's part cached, as the shim does.
func BenchmarkWarm(b *testing.B) {
	d := description(ovmftest.Build(big()))
	h, err := snp.FirmwareHash(d.Firmware)
	if err != nil {
		b.Fatal(err)
	}
	d.FirmwareHash = h
	for b.Loop() {
		mustMeasure(b, d)
	}
}

// BenchmarkVCPUs derives a digest from a prepared launch.
func BenchmarkVCPUs(b *testing.B) {
	p, err := snp.Prepare(description(ovmftest.Build(big())))
	if err != nil {
		b.Fatal(err)
	}
	for name, n := range map[string]int{"1": 1, "255": 255} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Digest(n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
