// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vtpm

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
)

func digest(t *testing.T, s string) [sha256.Size]byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(b)
}

// description is a VM that was booted on 2026-11-30: 640 MiB, QEMU 7.2, OVMF 2022.11-6+deb12u2, Linux 6.12.118-1 of
// Debian 13. Its kernel is too large for a test; another one stands for it.
func description(t *testing.T) Description {
	t.Helper()
	return Description{
		Firmware: Firmware{
			PEI: digest(t, "8d9479341fe42ae83ff2439e853ea4a55789bb9fd3275b97fce0a7b01de1290e"),
			DXE: digest(t, "614b0bfb88626b36415706a5143619938a38542e732587e2fa05c481f2843d4d"),
		},
		Kernel: bzimagetest.Kernel("6.12.118", "a"), Memory: 640 << 20,
		Initrd:     digest(t, "092064352ef2e0df7fc8e9a01e5948501cc7e359a2cbaf2bfae682d5f86216be"),
		InitrdSize: 1983680, Cmdline: "console=ttyS0 quiet panic=-1 reboot=t no_timer_check",
	}
}

// The values are those that swtpm 0.7.1 had in that VM, read by its kernel.
func TestPCRsOfARealVM(t *testing.T) {
	const separatorOnly = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
	got, err := PCRs(description(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{
		0: "815244c92346c771257c85070f81b1a2c37bdc6f49b2b617741fac568def10aa",
		1: "8e9d1fe23131f12d6a523e9c32eb3223d4dc25e14eb5fd60163e7ba8de0f248c", 2: separatorOnly, 3: separatorOnly,
		5: "a5ceb755d043f32431d63e39f5161464620a3437280494b5850dc1b47cc074e0", 6: separatorOnly,
		7:  "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
		9:  "9dfe58043fb60bf2ebdd63087262df01084079cab4a1f7540b5155d6fb5487be",
		11: hex.EncodeToString(make([]byte, sha256.Size)),
	} {
		if got[n].String() != want {
			t.Errorf("PCR %d = %s, want %s", n, got[n], want)
		}
	}
	if _, ok := got[10]; ok || len(got) != 15 {
		t.Errorf("%d PCRs, with 10: %t", len(got), ok)
	}
}

func TestEachInputHasItsPCR(t *testing.T) {
	base, err := PCRs(description(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	initdata := sha256.Sum256([]byte("initdata"))
	for name, tc := range map[string]struct {
		change func(*Description)
		pcrs   []int
	}{
		"firmware":     {func(d *Description) { d.Firmware.DXE[0]++ }, []int{0}},
		"kernel":       {func(d *Description) { d.Kernel = bzimagetest.Kernel("6.12.118", "b") }, []int{4}},
		"memory":       {func(d *Description) { d.Memory = 1 << 30 }, []int{4}},
		"command line": {func(d *Description) { d.Cmdline += " x" }, []int{9}},
		"initramfs":    {func(d *Description) { d.Initrd[0]++ }, []int{9}},
		"its size":     {func(d *Description) { d.InitrdSize += 4096 }, []int{4}},
		"initdata":     {func(d *Description) { d.Initdata = &initdata }, []int{8}},
	} {
		d := description(t)
		tc.change(&d)
		var trace measurement.Trace
		got, err := PCRs(d, &trace)
		if err != nil || len(trace.Steps) == 0 {
			t.Errorf("%s: %v, %d steps", name, err, len(trace.Steps))
			continue
		}
		for n, v := range base {
			changed := len(tc.pcrs) == 1 && tc.pcrs[0] == n
			if got[n].Equal(v) == changed {
				t.Errorf("%s: PCR %d changed: %t", name, n, !changed)
			}
		}
	}
	d := description(t)
	d.Firmware.PEI = [sha256.Size]byte{}
	if got, err := PCRs(d, nil); err != nil || got[0] != nil {
		t.Errorf("with a part of the firmware unknown: PCR 0 is %s, %v", got[0], err)
	}
	for name, change := range map[string]func(*Description){
		"no kernel": func(d *Description) { d.Kernel = nil }, "no initrd": func(d *Description) { d.InitrdSize = 0 },
		"another file": func(d *Description) { d.Kernel = make([]byte, 4096) },
	} {
		d := description(t)
		change(&d)
		if _, err := PCRs(d, nil); err == nil {
			t.Errorf("%s: PCRs() = nil", name)
		}
	}
}
