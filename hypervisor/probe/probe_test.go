// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/cpuid"
)

// machine describes a host.
type machine struct {
	files map[string]string
	cpuid cpuid.Regs // of leaf 8000001F
	qemu  QEMU
}

func (m machine) host(t *testing.T) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range m.files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Host{
		Root:  root,
		CPUID: func(leaf, _ uint32) cpuid.Regs { return map[uint32]cpuid.Regs{leafSEV: m.cpuid}[leaf] },
		QEMU: func(context.Context, string) (QEMU, error) {
			if m.qemu.Major == 0 {
				return QEMU{}, errors.New("no such file")
			}
			return m.qemu, nil
		},
		Version: func(_ context.Context, p string) (string, error) { return p + " 1.7.27", nil },
	}
}

var (
	milan = machine{
		files: map[string]string{
			"dev/kvm": "", "dev/net/tun": "", "dev/sev": "", "proc/cpuinfo": "flags\t: svm lm\n",
			"sys/module/kvm_amd/parameters/sev_snp": "Y\n", "sys/kernel/iommu_groups/0/type": "",
			"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "64\n",
		},
		cpuid: cpuid.Regs{EAX: 0x1780a9f, EBX: 51 | 1<<6 | 4<<12, ECX: 509, EDX: 100},
		qemu:  QEMU{10, 0, 2, []string{"sev-guest", "sev-snp-guest"}},
	}
	emerald = machine{
		files: map[string]string{
			"dev/kvm": "", "dev/net/tun": "", "proc/cpuinfo": "flags\t: vmx tdx_host_platform\n",
			"sys/module/kvm_intel/parameters/tdx": "Y\n", "var/run/tdx-qgs/qgs.socket": "",
		},
		qemu: QEMU{11, 1, 3, []string{"sev-snp-guest", "tdx-guest"}},
	}
	cloudVM = machine{
		files: map[string]string{
			"dev/kvm": "", "dev/net/tun": "", "proc/cpuinfo": "flags\t: lm hypervisor\n",
			"sys/module/kvm_pvm/x": "",
		},
		qemu: QEMU{7, 2, 22, []string{"sev-guest"}},
	}
	bare = machine{files: map[string]string{"proc/cpuinfo": "flags\t: lm\n"}}
	tdvm = machine{
		files: map[string]string{"dev/net/tun": "", "dev/tdx_guest": "", "proc/cpuinfo": "flags\t: tdx_guest hypervisor\n"},
		qemu:  QEMU{6, 0, 0, nil},
	}
)

func TestPlatforms(t *testing.T) {
	snp := []string{"snp.cpu", "snp.kvm", "snp.firmware", "snp.qemu"}
	tdx := []string{"tdx.cpu", "tdx.kvm", "tdx.qemu"}
	all := func(lists ...[]string) (out []string) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	tests := []struct {
		name string
		m    machine
		want []Platform
	}{
		{"an SNP host", milan, []Platform{{"none", true, "KVM", nil}, {"snp", true, "KVM", nil}, {"tdx", false, "", tdx}}},
		{"a TDX host", emerald, []Platform{
			{"none", true, "KVM", nil},
			{"snp", false, "", []string{"snp.cpu", "snp.kvm", "snp.firmware"}},
			{"tdx", true, "KVM", nil},
		}},
		{"a VM of a cloud without hardware virtualization", cloudVM, []Platform{
			{"none", true, "TCG", nil},
			{"snp", false, "", all([]string{"kvm"}, snp)},
			{"tdx", false, "", all([]string{"kvm"}, tdx)},
		}},
		{"nothing at all", bare, []Platform{
			{"none", false, "TCG", []string{"qemu", "tun"}},
			{"snp", false, "", all([]string{"kvm"}, snp, []string{"qemu", "tun"})},
			{"tdx", false, "", all([]string{"kvm"}, tdx, []string{"qemu", "tun"})},
		}},
		{"a TDX guest with an old QEMU", tdvm, []Platform{
			{"none", false, "TCG", []string{"qemu"}},
			{"snp", false, "", all([]string{"kvm"}, snp, []string{"qemu"})},
			{"tdx", false, "", all([]string{"kvm"}, tdx, []string{"qemu"})},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Run(t.Context(), tt.m.host(t), Options{QEMUPath: "/usr/bin/qemu"})
			if diff := cmp.Diff(tt.want, r.Platforms); diff != "" {
				t.Errorf("platforms (-want +got):\n%s", diff)
			}
			for _, f := range r.Findings {
				if f.Status == No && f.Fix == "" {
					t.Errorf("%s: %q says no and not what to do", f.Name, f.Detail)
				}
				if f.Detail == "" {
					t.Errorf("%s has no words", f.Name)
				}
			}
		})
	}
}

func TestDetails(t *testing.T) {
	tests := []struct {
		m          machine
		name, want string
	}{
		{milan, "snp.cpu", "C-bit 51, 509 encrypted guests, of them 99 SNP or ES"},
		{milan, "hugepages", "64 of 2048kB reserved"},
		{milan, "vfio", "1 IOMMU groups, but no /dev/vfio/vfio"},
		{milan, "machine", "this is hardware, not a virtual machine"},
		{emerald, "tdx.quotes", "the quote generation service listens on /var/run/tdx-qgs/qgs.socket"},
		{cloudVM, "machine", "this is a virtual machine: VMs in it need nested virtualization"},
		{cloudVM, "snp.qemu", "QEMU 7.2 has no object sev-snp-guest"},
		{tdvm, "machine", "this is itself a TDX guest: it cannot start confidential VMs of its own"},
		{tdvm, "qemu", "/q, version 6.0.0"},
	}
	for _, tt := range tests {
		r := Run(t.Context(), tt.m.host(t), Options{QEMUPath: "/q"})
		for _, f := range r.Findings {
			if f.Name == tt.name && f.Detail != tt.want {
				t.Errorf("%s = %q, want %q", tt.name, f.Detail, tt.want)
			}
		}
	}
}

func TestOldSNPFirmwareIsNoted(t *testing.T) {
	for status, want := range map[string]bool{
		"SNP firmware 1.52 build 4, 0 guests, reported TCB 0x1": true, "SNP firmware 0.99 build 4, x": true,
		"SNP firmware 1.55 build 21, 0 guests": false, "SNP firmware 1.58 build 1, 0 guests": false,
		"SNP firmware 2.0 build 1, 0 guests": false,
	} {
		h := milan.host(t)
		h.SEVStatus = func() (string, error) { return status, nil }
		noted := false
		for _, f := range Run(t.Context(), h, Options{QEMUPath: "/q"}).Findings {
			noted = noted || f.Name == "snp.idblock" && f.Status == Note && strings.Contains(f.Fix, "snp_id_block")
		}
		if noted != want {
			t.Errorf("%s: noted %t, want %t", status, noted, want)
		}
	}
}

func TestChecksOfOthers(t *testing.T) {
	r := Run(t.Context(), milan.host(t), Options{QEMUPath: "/q", Checks: []Check{
		{Name: "image", Required: true, Run: func() (string, error) { return "/guest", errors.New("make image") }},
		{Name: "config", Run: func() (string, error) { return "fine", nil }},
	}})
	if p := r.Platforms[0]; p.Usable || strings.Join(p.Missing, " ") != "image" {
		t.Errorf("platform = %+v, want image missing", p)
	}
}

func TestDecodeSNPStatus(t *testing.T) {
	b := make([]byte, snpStatusSize)
	b[0], b[1], b[2], b[4], b[12], b[24], b[31] = 1, 55, 1, 37, 2, 4, 0xd5
	got, err := decodeSNPStatus(b)
	if want := "SNP firmware 1.55 build 37, 2 guests, reported TCB 0xd500000000000004"; err != nil || got != want {
		t.Errorf("decodeSNPStatus() = %q, %v, want %q", got, err, want)
	}
	if _, err := decodeSNPStatus(b[:31]); err == nil {
		t.Error("decodeSNPStatus() of a short answer = nil")
	}
}
