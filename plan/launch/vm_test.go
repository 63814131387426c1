// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
)

func TestVMCarriesThePlatform(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*configs.Hypervisor)
		want   hypervisor.VMSpec
	}{
		"none": {func(*configs.Hypervisor) {}, hypervisor.VMSpec{}},
		"snp": {func(h *configs.Hypervisor) {
			h.Platform = "snp"
		}, hypervisor.VMSpec{TEE: "snp", SNP: &hypervisor.SNP{Policy: 0x30000, Pin: "anonymous"}}},
		"snp, debug": {func(h *configs.Hypervisor) {
			h.Platform, h.SNPGuestPolicy, h.InsecureSNPDebug = "snp", 0xb0000, true
		}, hypervisor.VMSpec{TEE: "snp", SNP: &hypervisor.SNP{Policy: 0xb0000, InsecureDebug: true, Pin: "anonymous"}}},
		"tdx": {
			func(h *configs.Hypervisor) { h.Platform, h.TDXQuoteSocket = "tdx", "vsock:4050" },
			hypervisor.VMSpec{TEE: "tdx", TDX: &hypervisor.TDX{QuoteVsock: 4050}},
		},
		"tdx, unix": {
			func(h *configs.Hypervisor) { h.Platform, h.TDXQuoteSocket = "tdx", "/run/q" },
			hypervisor.VMSpec{TEE: "tdx", TDX: &hypervisor.TDX{QuoteUnix: "/run/q"}},
		},
	} {
		c := configs.Default()
		tt.change(&c.Hypervisor)
		v := VM("", c.Hypervisor, Shape{VCPUs: 1, MemoryMiB: 512}, hypervisor.Boot{})
		got := hypervisor.VMSpec{TEE: v.TEE, SNP: v.SNP, TDX: v.TDX}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}
