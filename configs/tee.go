// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// PlatformVTPM is the value of hypervisor.platform with which the firmware measures the boot into a virtual TPM of the
// host. It proves to whoever trusts the host what was booted, and the guest's memory stays open to the host.
const PlatformVTPM = "vtpm"

// Bits of an SNP guest policy (AMD SEV-SNP firmware ABI, 56860, table 10).
const (
	snpPolicySMT       = 1 << 16 // may run with simultaneous multithreading
	snpPolicyReserved1 = 1 << 17 // must be one
	snpPolicyDebug     = 1 << 19 // the host may read and change the guest's memory
	snpPolicyBits      = 26      // those above must be zero
)

const (
	vsockPrefix  = "vsock:"
	maxVsockPort = 1<<32 - 2 // above is VMADDR_PORT_ANY
	maxUnixPath  = 107       // sun_path without its NUL
)

// QuoteService is where quotes of a TD come from: a vsock port of the host, or a Unix socket's path, or
// neither.
func (h Hypervisor) QuoteService() (vsock uint32, unix string) {
	port, isVsock := strings.CutPrefix(h.TDXQuoteSocket, vsockPrefix)
	if !isVsock {
		return 0, h.TDXQuoteSocket
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return 0, "" // no configuration that was decoded is like that
	}
	return uint32(n), ""
}

func snpPolicy() rule {
	return rule{"an SNP guest policy such as 0x30000: bit 17 set, none above bit 25", func(v any) string {
		switch p := v.(int64); {
		case p&snpPolicyReserved1 == 0:
			return fmt.Sprintf("%#x has bit 17 clear, which the AMD firmware refuses", p)
		case p>>snpPolicyBits != 0:
			return fmt.Sprintf("%#x has bits above 25, which the AMD firmware refuses", p)
		}
		return ""
	}}
}

func quoteSocket() rule {
	return rule{"\"vsock:PORT\", as in \"vsock:4050\", or the absolute path of a Unix socket", func(v any) string {
		s := v.(string)
		if port, ok := strings.CutPrefix(s, vsockPrefix); ok {
			n, err := strconv.ParseUint(port, 10, 32)
			if err != nil || n < 1 || n > maxVsockPort || strconv.FormatUint(n, 10) != port {
				return fmt.Sprintf("%q has no port from 1 to %d", s, uint64(maxVsockPort))
			}
			return ""
		}
		switch {
		case strings.ContainsAny(s, "\x00\n"):
			return fmt.Sprintf("%q holds a control character", s)
		case !filepath.IsAbs(s):
			return fmt.Sprintf("%q is neither", s)
		case len(s) > maxUnixPath:
			return fmt.Sprintf("%q is longer than the %d bytes of a socket's path", s, maxUnixPath)
		}
		return ""
	}}
}

// platform checks what the platform makes of other keys.
func (d *decoder) platform(h Hypervisor) {
	if h.SNPGuestPolicy&snpPolicyDebug != 0 && !h.InsecureSNPDebug {
		d.blame("hypervisor.snp_guest_policy", fmt.Sprintf("%#x lets the host read and change the guest's memory (bit 19)",
			h.SNPGuestPolicy),
			"bit 19 clear, or for experiments hypervisor.insecure_snp_debug = true")
	}
	if h.InsecureSNPDebug && h.Platform != "snp" {
		d.blame("hypervisor.insecure_snp_debug", fmt.Sprintf("means nothing on platform %q", h.Platform), "false")
	}
	if h.SNPIDBlock != "anonymous" && (h.Platform != "snp" || h.Type == TypeCLH) {
		d.blame("hypervisor.snp_id_block", fmt.Sprintf("means nothing on platform %q of VMM %q: an IGVM file has its own",
			h.Platform, h.Type), "\"anonymous\"")
	}
	if h.TDXQuoteSocket != "" && h.Platform != "tdx" {
		d.blame("hypervisor.tdx_quote_socket", fmt.Sprintf("means nothing on platform %q", h.Platform), "\"\"")
	}
	switch h.Platform {
	case PlatformVTPM:
		d.firmware(h)
		if h.Type != "qemu" {
			d.blame("hypervisor.platform", fmt.Sprintf("%q: VMM %q has no virtual TPM", h.Platform, h.Type), `type = "qemu"`)
		}
	case "snp":
		d.confidential(h)
		// An IGVM file holds the processor's registers, so on Cloud Hypervisor no model is named.
		if h.Type != TypeCLH && (h.CPUModel == "" || h.CPUModel == "host" || h.CPUModel == "max") {
			d.blame("hypervisor.cpu_model", fmt.Sprintf("%q is not one model, but SNP measures which it is", h.CPUModel),
				"a named model, as in \"EPYC-v4\"")
		}
	case "tdx":
		d.confidential(h)
		if h.CPUModel != "" && h.CPUModel != "host" {
			d.blame("hypervisor.cpu_model", fmt.Sprintf("%q: TDX runs only with the host's", h.CPUModel), "\"\" or \"host\"")
		}
	}
}

// liveFiles checks who can have files of the host live.
func (d *decoder) liveFiles() {
	r := d.cfg.Runtime
	if r.HostPath == HostPathLive {
		d.live("runtime.host_path", "\"read-only\", \"writable\" or \"refused\"")
	}
	if r.Binds == BindsLive {
		d.live("runtime.binds", "\"\" or \"read-only\"")
	}
	if p := d.cfg.Hypervisor.Platform; r.KeepFiles == KeepFiles && p != "none" {
		d.blame("runtime.keep_files", fmt.Sprintf("\"on\" gives what containers write to the host, which on platform %q is "+
			"not trusted", p), "\"\" or \"off\"")
	}
	if r.HostPath != HostPathLive && !d.cfg.LiveBinds() && r.Virtiofsd != "" {
		d.blame("runtime.virtiofsd", "means nothing, because neither host_path nor binds is \"live\"", "\"\"")
	}
}

// live checks whether a key can have the value "live".
func (d *decoder) live(key, others string) {
	switch h := d.cfg.Hypervisor; {
	case h.Platform != "none":
		d.blame(key, fmt.Sprintf("\"live\" shares files of the host with the guest, which on platform %q "+
			"trusts none", h.Platform), others)
	case h.Type == TypeCLH:
		d.blame(key, "\"live\" is not supported with Cloud Hypervisor", others+", or type = \"qemu\"")
	}
}

// warm checks where VMs can start from saved ones, and where they can wait for their pods. Cloud Hypervisor has no
// ports.
func (d *decoder) warm() {
	h := d.cfg.Hypervisor
	if d.cfg.Runtime.Standby > 0 && h.HotplugPorts == 0 {
		d.blame("runtime.standby", "plugs the pod's network interface into a VM that runs, which needs a PCIe port of QEMU",
			"0, or hotplug_ports = 1")
	}
	switch {
	case d.cfg.Runtime.Template == TemplateOff:
	case h.Platform != "none":
		d.blame("runtime.template", fmt.Sprintf("%q copies the memory of a VM, which on platform %q nobody can",
			d.cfg.Runtime.Template, h.Platform), `"off"`)
	case h.Type == TypeCLH:
		d.blame("runtime.template", fmt.Sprintf("%q is not supported with Cloud Hypervisor", d.cfg.Runtime.Template),
			`"off", or type = "qemu"`)
	}
}

// confidential checks what both TEEs ask for.
func (d *decoder) confidential(h Hypervisor) {
	d.firmware(h)
	if h.InsecureDebugConsole {
		d.blame("hypervisor.insecure_debug_console", fmt.Sprintf("shows the guest's console to the host of platform %q",
			h.Platform), "false")
	}
	if h.Accel == "tcg" {
		d.blame("hypervisor.accel", fmt.Sprintf("\"tcg\" cannot run platform %q", h.Platform), "\"\" or \"kvm\"")
	}
}

// firmware demands a firmware where it is part of what is measured.
func (d *decoder) firmware(h Hypervisor) {
	if h.Firmware != "" {
		return
	}
	expect := "the absolute path of an OVMF build for it"
	if h.Type == TypeCLH {
		expect = "the absolute path of an IGVM file"
	}
	d.blame("hypervisor.firmware", fmt.Sprintf("is empty, but platform %q boots through firmware", h.Platform), expect)
}
