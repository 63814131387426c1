// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"os"
	"testing"
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/plan/launch"
)

// BenchmarkMeasureTDXCold is a whole process that starts QEMU for the ACPI tables: MRTD and RTMR0-2 of one VM.
func BenchmarkMeasureTDXCold(b *testing.B) {
	p := newProcess(b)
	config, guest := teeConfig(b, "tdx", tdxFirmware(b), "path = \""+newQEMU(b)+"\"\nmax_vcpus = 8\n")
	if err := os.Truncate(guest+"/vmlinuz", 12_000_000); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(guest+"/initrd.img", 60_000_000); err != nil {
		b.Fatal(err)
	}
	p.args = []string{
		"measure", "--config", config, "--vcpus", "2", "--memory", "2G", "--profile",
		"edk2-stable202502+qemu-11.0", "--no-cache",
	}
	for b.Loop() {
		p.output(b)
	}
}

// BenchmarkMeasureWarm is one digest where firmware and kernel are known, with the ID block that the shim launches
// with.
func BenchmarkMeasureWarm(b *testing.B) {
	chain := launch.Chain{Firmware: ovmftest.Build(ovmftest.Layout{
		Size: 4 << 20, Seed: 1, EIP: 0x80b004,
		HashBase: 0x810c00, SEV: ovmftest.Sections(),
	})}
	spec := hypervisor.VMSpec{
		TEE: hypervisor.TEESNP, SNP: &hypervisor.SNP{Policy: 0x30000},
		CPU: hypervisor.CPU{Count: 2, Model: "EPYC-v4"},
	}
	b.Run("firmware in memory, with ID block", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := launch.Expect(spec, chain); err != nil {
				b.Fatal(err)
			}
		}
	})
	d := snp.Description{VMM: snp.QEMU, Firmware: chain.Firmware, Signature: 0x800f12, Features: 1, Kernel: nil}
	prepared, err := snp.Prepare(d)
	if err != nil {
		b.Fatal(err)
	}
	for name, n := range map[string]int{"prepared, 1 vCPU": 1, "prepared, 255 vCPUs": 255} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := prepared.Digest(n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The cost of a processor does not depend on the machine by orders of magnitude: 254 more take far less than 1 ms.
func TestManyProcessorsCostNothing(t *testing.T) {
	p, err := snp.Prepare(snp.Description{
		VMM: snp.QEMU, Signature: 0x800f12, Features: 1,
		Firmware: ovmftest.Build(ovmftest.Layout{
			Size: 64 << 10, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00,
			SEV: ovmftest.Sections(),
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 20 {
		start := time.Now()
		if _, err := p.Digest(255); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	if best > time.Millisecond {
		t.Errorf("255 vCPUs take %s more than none", best)
	}
}
