// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"strings"
)

// AMD APM volume 3, CPUID Fn8000_001F.
const (
	leafSEV = 0x8000001f
	bitSEV  = 1 << 1
	bitSNP  = 1 << 4
)

// snp checks for SEV-SNP and returns the names of what it needs.
func (p *prober) snp(q *QEMU) []string {
	r := p.host.CPUID(leafSEV, 0)
	switch {
	case r.EAX&bitSNP != 0:
		p.yes("snp.cpu", "C-bit %d, %d encrypted guests, of them %d SNP or ES", r.EBX&0x3f, r.ECX, max(r.EDX, 1)-1)
	case r.EAX&bitSEV != 0:
		p.add("snp.cpu", No, "the processor has SEV but not SNP",
			"use EPYC 7003 (Milan) or later; enable SNP in the firmware")
	default:
		p.add("snp.cpu", No, "the processor shows no SEV (CPUID 8000001F)",
			"use a host with AMD EPYC 7003 or later, not inside a VM")
	}
	switch {
	case !p.exists("sys/module/kvm_amd"):
		p.add("snp.kvm", No, "module kvm_amd is not loaded", "modprobe kvm_amd on an AMD host")
	case !p.enabled("kvm_amd", "sev_snp"):
		p.add("snp.kvm", No, "kvm_amd's parameter sev_snp is off or missing", "Linux 6.11 or later, kvm_amd.sev=1 "+
			"kvm_amd.sev_es=1 kvm_amd.sev_snp=1, and in the firmware SMEE, SNP memory coverage (RMP table) and the IOMMU; a "+
			"minimum SEV ASID greater than 1")
	default:
		p.yes("snp.kvm", "kvm_amd.sev_snp is on")
	}
	p.securityProcessor(r.EAX&bitSEV != 0)
	p.object(q, "snp.qemu", "sev-snp-guest", "install QEMU 9.1 or later with SEV-SNP")
	return []string{"snp.cpu", "snp.kvm", "snp.firmware", "snp.qemu"}
}

// idBlockMinor is the minor version of the oldest series of SNP firmware that is known to take an ID block without an
// author key; AMDESE/sev-guest issue 13 tells of older firmware that does not.
const idBlockMinor = 55

// securityProcessor asks the AMD security processor, through /dev/sev.
func (p *prober) securityProcessor(hasSEV bool) {
	switch {
	case !p.exists("dev/sev"):
		fix := "only hosts with SEV have it"
		if hasSEV {
			fix = "modprobe ccp, and look into the kernel log for what it says about SEV"
		}
		p.add("snp.firmware", No, "no /dev/sev", fix)
	case p.host.SEVStatus == nil:
		p.yes("snp.firmware", "/dev/sev is present")
	default:
		s, err := p.host.SEVStatus()
		if err != nil {
			p.add("snp.firmware", No, fmt.Sprintf("/dev/sev: %v", err), "run as root; update the SEV firmware")
			return
		}
		p.yes("snp.firmware", "%s", s)
		var major, minor int
		if _, err := fmt.Sscanf(s, "SNP firmware %d.%d ", &major, &minor); err == nil &&
			(major < 1 || major == 1 && minor < idBlockMinor) {
			p.add("snp.idblock", Note, fmt.Sprintf("SNP firmware %d.%d may refuse ID blocks without an author key", major,
				minor),
				fmt.Sprintf("update the SEV firmware to 1.%d or later, or set hypervisor.snp_id_block to \"author\"", idBlockMinor))
		}
	}
}

// tdx checks for TDX and returns the names of what it needs.
func (p *prober) tdx(q *QEMU) []string {
	if p.flag("tdx_host_platform") {
		p.yes("tdx.cpu", "the processor is a TDX host")
	} else {
		p.add("tdx.cpu", No, "the processor is no TDX host (flag tdx_host_platform)", "use a Xeon of the 5th generation or "+
			"later (4th in clouds), enable TME-MT, SGX and TDX in the firmware; Linux 6.16 or later")
	}
	switch {
	case !p.exists("sys/module/kvm_intel"):
		p.add("tdx.kvm", No, "module kvm_intel is not loaded", "modprobe kvm_intel on an Intel host")
	case !p.enabled("kvm_intel", "tdx"):
		p.add("tdx.kvm", No, "kvm_intel's parameter tdx is off or missing",
			"Linux 6.16 or later, booted with kvm_intel.tdx=1 and a TDX module from the firmware (kernel log: virt/tdx)")
	default:
		p.yes("tdx.kvm", "kvm_intel.tdx is on")
	}
	p.object(q, "tdx.qemu", "tdx-guest", "install QEMU 10.1 or later")
	const qgs = "var/run/tdx-qgs/qgs.socket"
	if p.exists(qgs) || p.exists(strings.TrimPrefix(qgs, "var/")) {
		p.add("tdx.quotes", Note, "the quote generation service listens on /"+qgs, "")
	} else {
		p.add("tdx.quotes", Note, "no quote generation service at /"+qgs+"; TDX guests cannot be attested without one",
			"install tdx-qgs, or name its vsock port in the configuration")
	}
	return []string{"tdx.cpu", "tdx.kvm", "tdx.qemu"}
}

func (p *prober) object(q *QEMU, name, object, fix string) {
	switch {
	case q == nil:
		p.add(name, No, "no usable QEMU", fix)
	case !q.has(object):
		p.add(name, No, fmt.Sprintf("QEMU %d.%d has no object %s", q.Major, q.Minor, object), fix)
	default:
		p.yes(name, "QEMU has %s", object)
	}
}
