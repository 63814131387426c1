// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootfiles

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
)

func file(t *testing.T, b []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fw.fd")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFirmwareThatCannotStartIsRefused(t *testing.T) {
	const size = 128 << 10
	image := func(change func(*ovmftest.Layout)) []byte {
		l := ovmftest.Layout{
			Size: size, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00, SEV: ovmftest.Sections(),
			TDX: ovmftest.TDXSections(size),
		}
		change(&l)
		return ovmftest.Build(l)
	}
	sections := ovmftest.Sections()
	empty := append(ovmftest.Sections(), ovmf.Section{GPA: 0x900000, Type: ovmf.SecMem})
	fine := func(*ovmftest.Layout) {}
	tests := []struct {
		name string
		tee  hypervisor.TEE
		fw   []byte
		want string // "": accepted
	}{
		{"a good image for SNP", hypervisor.TEESNP, image(fine), ""},
		{"a good image for TDX", hypervisor.TEETDX, image(fine), ""},
		{"anything without a TEE", hypervisor.TEENone, []byte("x"), ""},
		{"no hash area", hypervisor.TEESNP, image(func(l *ovmftest.Layout) { l.HashBase = 0 }), "kernel-hash area"},
		{"no hash section, as in the generic OVMF 2025.02", hypervisor.TEESNP, image(func(l *ovmftest.Layout) {
			l.SEV = sections[:6]
		}), "no KERNEL_HASHES section, so a kernel would boot unmeasured"},
		{
			"an empty section", hypervisor.TEESNP, image(func(l *ovmftest.Layout) { l.SEV = empty }),
			"is empty, which QEMU refuses",
		},
		{"no SEV metadata", hypervisor.TEESNP, image(func(l *ovmftest.Layout) { l.SEV = nil }), "SEV metadata"},
		{"no reset block", hypervisor.TEESNP, image(func(l *ovmftest.Layout) { l.EIP = 0 }), "reset block"},
		{
			"no TDX metadata", hypervisor.TEETDX, image(func(l *ovmftest.Layout) { l.TDX = nil }),
			"TDX metadata: not in the firmware's table",
		},
		{"no table", hypervisor.TEETDX, image(func(l *ovmftest.Layout) { l.NoTable = true }), "TDX metadata"},
		{"a fragment for SNP", hypervisor.TEESNP, image(fine)[size-4096:], "multiple of 64 KiB"},
		{"an SNP image needs no TDX metadata", hypervisor.TEESNP, image(func(l *ovmftest.Layout) { l.TDX = nil }), ""},
		{"a TDX image needs no SEV metadata", hypervisor.TEETDX, image(func(l *ovmftest.Layout) {
			l.SEV, l.EIP, l.HashBase = nil, 0, 0
		}), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := hypervisor.VMSpec{TEE: tt.tee, Boot: hypervisor.Boot{
				Firmware: file(t, tt.fw),
				Kernel:   file(t, []byte("kernel")),
			}}
			err := Precheck(configs.TypeQEMU)(spec)
			if pos, _ := spec.Boot.Firmware.Seek(0, io.SeekCurrent); pos != 0 {
				t.Errorf("the descriptor's offset moved to %d", pos)
			}
			if tt.want == "" {
				if err != nil {
					t.Errorf("Precheck() = %v, want nil", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "fw.fd") ||
				!errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Errorf("Precheck() = %v, want an errdefs.ErrFailedPrecondition with %q", err, tt.want)
			}
		})
	}
	if err := Precheck(configs.TypeQEMU)(hypervisor.VMSpec{TEE: hypervisor.TEESNP}); err == nil {
		t.Error("SNP without firmware was accepted")
	}
}
