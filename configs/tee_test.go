// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExamplesOfConfidentialPlatformsLoad(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]func(*Hypervisor){
		"config-qemu-snp.toml": func(h *Hypervisor) {
			h.Platform, h.Firmware, h.CPUModel, h.MaxVCPUs = "snp", "/usr/share/ovmf/OVMF.amdsev.fd", "EPYC-v4", 8
		},
		"config-qemu-vtpm.toml": func(h *Hypervisor) {
			h.Platform, h.Firmware = "vtpm", "/usr/share/ovmf/OVMF.fd"
		},
		"config-qemu-tdx.toml": func(h *Hypervisor) {
			h.Platform, h.Firmware, h.MaxVCPUs, h.TDXQuoteSocket = "tdx", "/usr/share/ovmf/OVMF.fd", 8, "vsock:4050"
		},
	}
	for name, change := range want {
		got, err := Load(filepath.Join(wd, name))
		if err != nil {
			t.Error(err)
			continue
		}
		c := Default()
		c.Hypervisor.HotplugPorts = 0 // they would be measured on tdx
		c.Runtime.Template = TemplateOff
		change(&c.Hypervisor)
		if d := cmp.Diff(c, got, ignoreFiles); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestDecodeTEEKeys(t *testing.T) {
	const snp = "[hypervisor]\nplatform = \"snp\"\nfirmware = \"/f\"\ncpu_model = \"EPYC-v4\"\n"
	const tdx = "[hypervisor]\nplatform = \"tdx\"\nfirmware = \"/f\"\n"
	const vtpm = "[hypervisor]\nplatform = \"vtpm\"\nfirmware = \"/f\"\n"
	tests := []struct{ name, text, err string }{
		{"a virtual TPM", vtpm + "accel = \"tcg\"\n[vtpm]\nprogram = \"/p\"\n", ""},
		{
			"a virtual TPM without firmware", "[hypervisor]\nplatform = \"vtpm\"\n",
			"hypervisor.firmware: is empty, but platform \"vtpm\" boots through firmware",
		},
		{"a virtual TPM without a program", vtpm + "[vtpm]\nprogram = \"\"\n", "vtpm.program: must not be empty"},
		{"a CA of virtual TPMs", vtpm + "[vtpm]\nca = \"/ca\"\n", ""},
		{"a CA without a path", vtpm + "[vtpm]\nca = \"ca\"\n", "\"ca\" is not an absolute path"},
		{"a virtual TPM elsewhere", vtpm + "type = \"clh\"\n", "VMM \"clh\" has no virtual TPM"},
		{
			"a virtual TPM beside live files", vtpm + "[runtime]\nhost_path = \"live\"\n",
			"which on platform \"vtpm\" trusts none",
		},
		{"a virtual TPM from a template", vtpm + "[runtime]\ntemplate = \"private\"\n", "copies the memory of a VM"},
		{"SNP", snp, ""},
		{"policy with single socket", snp + "snp_guest_policy = 0x130000\n", ""},
		{
			"policy without bit 17", snp + "snp_guest_policy = 0x10000\n",
			"t.toml:5: hypervisor.snp_guest_policy: 0x10000 has bit 17 clear",
		},
		{"policy with high bits", snp + "snp_guest_policy = 0x4030000\n", "0x4030000 has bits above 25"},
		{"policy as text", snp + "snp_guest_policy = \"0x30000\"\n", "is a string"},
		{"negative policy", snp + "snp_guest_policy = -1\n", "-1 is negative"},
		{"debug", snp + "snp_guest_policy = 0xb0000\n", "t.toml:5: hypervisor.snp_guest_policy: 0xb0000 lets the host read " +
			"and change the guest's memory (bit 19); expected bit 19 clear"},
		{"debug, on purpose", snp + "snp_guest_policy = 0xb0000\ninsecure_snp_debug = true\n", ""},
		{"debug without a platform", "[hypervisor]\nsnp_guest_policy = 0xb0000\n", "lets the host read"},
		{"an ID block with an author key", snp + "snp_id_block = \"author\"\n", ""},
		{"no ID block", snp + "snp_id_block = \"none\"\n", ""},
		{"another ID block", snp + "snp_id_block = \"mine\"\n", "\"mine\" is not known"},
		{
			"an ID block elsewhere", tdx + "snp_id_block = \"none\"\n",
			"hypervisor.snp_id_block: means nothing on platform \"tdx\"",
		},
		{
			"debug switch elsewhere", tdx + "insecure_snp_debug = true\n",
			"hypervisor.insecure_snp_debug: means nothing on platform \"tdx\"",
		},
		{
			"a template", snp + "[runtime]\ntemplate = \"private\"\n",
			"t.toml:6: runtime.template: \"private\" copies the memory of a VM, which on platform \"snp\" nobody can",
		},
		{"a template on TDX", tdx + "[runtime]\ntemplate = \"private\"\n", "platform \"tdx\" nobody can"},
		{
			"a template with Cloud Hypervisor", "[hypervisor]\ntype = \"clh\"\n[runtime]\ntemplate = \"private\"\n",
			"runtime.template: \"private\" is not supported with Cloud Hypervisor",
		},
		{"templates switched off", snp + "[runtime]\ntemplate = \"off\"\n", ""},
		{
			"a VM that waits without a port", "[hypervisor]\nhotplug_ports = 0\n[runtime]\nstandby = 1\n",
			"runtime.standby: plugs the pod's network interface",
		},
		{
			"a VM that waits with Cloud Hypervisor", "[hypervisor]\ntype = \"clh\"\n[runtime]\nstandby = 1\n",
			"a PCIe port of QEMU",
		},
		{"a VM that waits on SNP", snp + "hotplug_ports = 1\n[runtime]\nstandby = 1\n", ""},
		{"a VM that waits", "[runtime]\nstandby = 1\n", ""},
		{"a template elsewhere", "[runtime]\ntemplate = \"private\"\n", ""},
		{"an unknown template", "[runtime]\ntemplate = \"shared\"\n", "expected one of \"private\", \"off\""},
		{"host's model on SNP", strings.Replace(snp, "EPYC-v4", "host", 1), "\"host\" is not one model"},
		{"TDX", tdx, ""},
		{"model on TDX", tdx + "cpu_model = \"EPYC-v4\"\n", "TDX runs only with the host's"},
		{"vsock", tdx + "tdx_quote_socket = \"vsock:4050\"\n", ""},
		{"Unix socket", tdx + "tdx_quote_socket = \"/run/qgs.socket\"\n", ""},
		{"port 0", tdx + "tdx_quote_socket = \"vsock:0\"\n", "has no port from 1 to 4294967294"},
		{"any port", tdx + "tdx_quote_socket = \"vsock:4294967295\"\n", "has no port"},
		{"port with a plus", tdx + "tdx_quote_socket = \"vsock:+4050\"\n", "has no port"},
		{"port with zeros", tdx + "tdx_quote_socket = \"vsock:04050\"\n", "has no port"},
		{"relative socket", tdx + "tdx_quote_socket = \"qgs.socket\"\n", "is neither"},
		{"long socket", tdx + "tdx_quote_socket = \"/" + strings.Repeat("x", 107) + "\"\n", "is longer than the 107 bytes"},
		{"files of the host", snp + "[runtime]\nhost_path = \"live\"\n", "t.toml:6: runtime.host_path: \"live\" shares " +
			"files of the host with the guest, which on platform \"snp\" trusts none"},
		{"live files", "[runtime]\nhost_path = \"live\"\nvirtiofsd = \"/usr/libexec/virtiofsd\"\n", ""},
		{
			"live files with Cloud Hypervisor", "[hypervisor]\ntype = \"clh\"\n[runtime]\nhost_path = \"live\"\n",
			"not supported with Cloud Hypervisor",
		},
		{
			"a program for nothing", "[runtime]\nbinds = \"read-only\"\nvirtiofsd = \"/usr/libexec/virtiofsd\"\n",
			"t.toml:3: runtime.virtiofsd: means nothing, because neither host_path nor binds",
		},
		{"a program for volumes of engines", "[runtime]\nvirtiofsd = \"/usr/libexec/virtiofsd\"\n", ""},
		{
			"files of containers", snp + "[runtime]\nkeep_files = \"on\"\n",
			"t.toml:6: runtime.keep_files: \"on\" gives what containers write to the host, which on platform \"snp\" is ",
		},
		{
			"volumes of engines", snp + "[runtime]\nbinds = \"live\"\n",
			"t.toml:6: runtime.binds: \"live\" shares files of the host with the guest, which on platform \"snp\" trusts none",
		},
		{
			"volumes of engines with Cloud Hypervisor", "[hypervisor]\ntype = \"clh\"\n[runtime]\nbinds = \"live\"\n",
			"runtime.binds: \"live\" is not supported with Cloud Hypervisor",
		},
		{
			"socket elsewhere", snp + "tdx_quote_socket = \"vsock:4050\"\n",
			"hypervisor.tdx_quote_socket: means nothing on platform \"snp\"",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode("t.toml", strings.NewReader(tt.text))
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			checkLines(t, err, []string{tt.err})
		})
	}
}

func TestQuoteServiceIsAPortOrAPath(t *testing.T) {
	for in, want := range map[string]struct {
		port uint32
		path string
	}{"": {}, "vsock:4050": {port: 4050}, "/run/q": {path: "/run/q"}} {
		h := Hypervisor{TDXQuoteSocket: in}
		if port, path := h.QuoteService(); port != want.port || path != want.path {
			t.Errorf("QuoteService of %q = %d, %q, want %+v", in, port, path, want)
		}
	}
}

func TestVCPUCountsAreWhatPodsCanGet(t *testing.T) {
	for limit, want := range map[int][]int{
		0: nil, 1: {1}, 5: {1, 2, 3, 4, 5}, 8: {1, 2, 3, 4, 6, 8},
		10: {1, 2, 3, 4, 6, 8, 10},
	} {
		got := VCPUCounts(limit)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("VCPUCounts(%d) (-want +got):\n%s", limit, d)
		}
		for n := 1; limit > 0 && n <= 2048; n++ {
			if !slices.Contains(got, RoundVCPUs(n, limit)) {
				t.Errorf("RoundVCPUs(%d, %d) is not in %v", n, limit, got)
			}
		}
	}
}

// VMs start from templates where nobody said otherwise, if the platform and the driver can copy their memory.
func TestTheDefaultOfTemplates(t *testing.T) {
	const fw = "firmware = \"/f\"\n"
	for _, tt := range []struct{ text, want string }{
		{"", TemplatePrivate},
		{"[runtime]\nlog_level = \"debug\"\n", TemplatePrivate},
		{"[runtime]\ntemplate = \"off\"\n", TemplateOff},
		{"[runtime]\ntemplate = \"private\"\n", TemplatePrivate},
		{"[hypervisor]\nplatform = \"snp\"\ncpu_model = \"EPYC-v4\"\n" + fw, TemplateOff},
		{"[hypervisor]\nplatform = \"tdx\"\n" + fw, TemplateOff},
		{"[hypervisor]\nplatform = \"vtpm\"\n" + fw, TemplateOff},
		{"[hypervisor]\ntype = \"clh\"\n", TemplateOff},
		{"[hypervisor]\ntype = \"clh\"\nplatform = \"snp\"\n" + fw, TemplateOff},
	} {
		c, err := Decode("t.toml", strings.NewReader(tt.text))
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
		} else if c.Runtime.Template != tt.want {
			t.Errorf("%q: runtime.template is %q, want %q", tt.text, c.Runtime.Template, tt.want)
		}
	}
}
