// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/ident"
)

const (
	maxCPUs       = 240  // below the 288 of q35 without an interrupt-remapping unit in xAPIC mode
	minMemoryMiB  = 64   // no kernel with an initramfs of ours comes up with less
	maxCmdline    = 2047 // COMMAND_LINE_SIZE of x86 Linux, without the NUL
	maxNICs       = 8    // slots on the root bus, see layout.go
	maxBlocks     = 200
	snpDebug      = 1 << 19 // SEV-SNP firmware ABI, guest policy: DEBUG
	snpReserved1  = 1 << 17 // likewise: reserved, must be one
	idBlockSize   = 96
	idAuthSize    = 4096
	firmwareAlign = 64 << 10 // granularity of the ROM below 4 GiB and of its measurement
)

// problems collects the errors in a spec.
type problems []error

func (p *problems) add(bad bool, format string, args ...any) {
	if bad {
		*p = append(*p, fmt.Errorf(format, args...))
	}
}

// Validate returns every reason why this driver cannot launch a spec. Without it, such a launch would fail late, or
// make a VM whose launch digest proves nothing.
func Validate(spec hypervisor.VMSpec) error {
	var p problems
	p.common(spec)
	p.devices(spec)
	switch spec.TEE {
	case hypervisor.TEENone:
		p.add(spec.SNP != nil || spec.TDX != nil, "settings of a TEE without one: set the platform")
		p.tpm(spec)
	case hypervisor.TEESNP:
		p.snp(spec)
	case hypervisor.TEETDX:
		p.tdx(spec)
	default:
		p.add(true, "unknown TEE %q", spec.TEE)
	}
	if len(p) > 0 {
		return fmt.Errorf("VM %s cannot be launched: %w: %w", spec.ID, errors.Join(p...), errdefs.ErrInvalidArgument)
	}
	return nil
}

func (p *problems) common(s hypervisor.VMSpec) {
	p.add(!ident.ID(s.ID), "id %q: want letters, digits, '_', '.', '-', at most 128", s.ID)
	p.add(s.Machine != "q35", "machine %q: only q35 is supported", s.Machine)
	switch s.Accel {
	case hypervisor.AccelAuto, hypervisor.AccelKVM, hypervisor.AccelTCG:
	default:
		p.add(true, "accelerator %q: want kvm, tcg or nothing", s.Accel)
	}
	p.add(s.CPU.Count < 1 || s.CPU.Count > maxCPUs, "%d vCPUs: want 1 to %d", s.CPU.Count, maxCPUs)
	p.add(strings.ContainsAny(s.CPU.Model, ", \n"), "CPU model %q: want a bare name", s.CPU.Model)
	p.add(s.MemoryMiB < minMemoryMiB, "%d MiB of memory: want at least %d", s.MemoryMiB, minMemoryMiB)
	p.add(s.Boot.Kernel == nil, "no kernel")
	p.add(len(s.Boot.Cmdline) > maxCmdline, "kernel command line of %d bytes: the kernel takes %d",
		len(s.Boot.Cmdline), maxCmdline)
	p.add(strings.ContainsAny(s.Boot.Cmdline, "\x00\n"), "kernel command line contains a newline or NUL")
	p.add(s.BootTimeout <= 0, "no boot timeout")
}

func (p *problems) devices(s hypervisor.VMSpec) {
	p.add(s.HotplugPorts < 0 || s.HotplugPorts > maxPorts, "%d hot-plug ports: want 0 to %d", s.HotplugPorts, maxPorts)
	switch s.BlockBus {
	case hypervisor.BlockSCSI:
		p.add(len(s.Blocks) > maxBlocks, "%d block devices: at most %d", len(s.Blocks), maxBlocks)
	case hypervisor.BlockBlk:
		p.add(len(s.Blocks) > s.HotplugPorts, "%d block devices on virtio-blk take as many hot-plug ports, there are %d",
			len(s.Blocks), s.HotplugPorts)
	default:
		p.add(true, "block bus %q: want %s or %s", s.BlockBus, hypervisor.BlockSCSI, hypervisor.BlockBlk)
	}
	ids := make(map[string]bool)
	for _, b := range s.Blocks {
		p.block(b)
		p.add(ids[b.ID], "block device %q: id used twice", b.ID)
		ids[b.ID] = true
	}
	p.add(len(s.NICs) > maxNICs, "%d network interfaces: at most %d at boot", len(s.NICs), maxNICs)
	for _, n := range s.NICs {
		p.nic(n)
		p.add(ids[n.ID], "network interface %q: id used twice", n.ID)
		ids[n.ID] = true
	}
	if f := s.HostFiles; f != nil {
		p.add(s.Measured(), "files of the host in a VM whose boot is measured, which trusts none")
		p.add(!ident.Device(f.Tag), "files of the host: tag %q must match %s", f.Tag, ident.DeviceForm)
		p.add(f.Socket == nil, "files of the host: no socket")
	}
}

func (p *problems) block(b hypervisor.Block) {
	p.add(!ident.Device(b.ID), "block device %q: id must match %s", b.ID, ident.DeviceForm)
	p.add(b.File == nil, "block device %q: no file", b.ID)
}

func (p *problems) nic(n hypervisor.NIC) {
	p.add(!ident.Device(n.ID), "network interface %q: id must match %s", n.ID, ident.DeviceForm)
	mac, err := net.ParseMAC(n.MAC)
	p.add(err != nil || len(mac) != 6, "network interface %q: MAC address %q is not one", n.ID, n.MAC)
	p.add(len(n.Tap) == 0, "network interface %q: no tap", n.ID)
	p.add(n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535), "network interface %q: MTU %d, want 68 to 65535", n.ID, n.MTU)
}

// tpm checks what a VM with a virtual TPM needs.
func (p *problems) tpm(s hypervisor.VMSpec) {
	if s.Boot.TPM == nil {
		return
	}
	p.add(s.Boot.TPM.Control == nil, "a virtual TPM without a process that serves it")
	p.add(s.Boot.Firmware == nil, "a virtual TPM needs firmware: without it nothing is measured")
	p.add(s.Boot.Initrd == nil, "a virtual TPM needs an initramfs: its digest binds the agent")
}

// confidential checks the requirements that both TEEs have.
func (p *problems) confidential(s hypervisor.VMSpec) {
	p.add(s.Boot.TPM != nil, "a virtual TPM in a VM of platform %s, which the host would run", s.TEE)
	p.add(s.Boot.Firmware == nil, "%s needs firmware: without it nothing is measured", s.TEE)
	p.add(s.Boot.Initrd == nil, "%s needs an initramfs: its hash binds the agent", s.TEE)
	p.add(s.Accel == hypervisor.AccelTCG, "%s needs KVM, not tcg", s.TEE)
	if s.Boot.Firmware == nil {
		return
	}
	info, err := s.Boot.Firmware.Stat()
	p.add(err != nil, "firmware: %w", err)
	if err == nil {
		p.add(info.Size() == 0 || info.Size()%firmwareAlign != 0, "firmware of %d bytes: want a multiple of %d",
			info.Size(), firmwareAlign)
	}
}

func (p *problems) snp(s hypervisor.VMSpec) {
	p.confidential(s)
	p.add(s.TDX != nil, "settings of TDX for an SNP VM")
	if s.SNP == nil {
		p.add(true, "an SNP VM without SNP settings")
		return
	}
	p.add(s.CPU.Model == "" || s.CPU.Model == "host" || s.CPU.Model == "max",
		"CPU model %q: SNP measures the model, so name one, for example EPYC-v4", s.CPU.Model)
	p.add(s.SNP.Policy&snpDebug != 0 && !s.SNP.InsecureDebug,
		"SNP policy %#x allows debugging: the host could read the guest's memory", s.SNP.Policy)
	p.add(s.SNP.Policy&snpReserved1 == 0, "SNP policy %#x: bit 17 must be set", s.SNP.Policy)
	block, auth := len(s.SNP.IDBlock), len(s.SNP.IDAuth)
	p.add(block != 0 && block != idBlockSize, "SNP ID block of %d bytes: want %d", block, idBlockSize)
	p.add(auth != 0 && auth != idAuthSize, "SNP ID authentication of %d bytes: want %d", auth, idAuthSize)
	p.add((block == 0) != (auth == 0), "SNP ID block and ID authentication belong together")
}

func (p *problems) tdx(s hypervisor.VMSpec) {
	p.confidential(s)
	p.add(s.SNP != nil, "settings of SNP for a TDX VM")
	if s.TDX == nil {
		p.add(true, "a TDX VM without TDX settings")
		return
	}
	p.add(s.CPU.Model != "" && s.CPU.Model != "host", "CPU model %q: TDX runs only with the host's", s.CPU.Model)
	p.add(s.TDX.QuoteVsock != 0 && s.TDX.QuoteUnix != "", "two quote generation services: vsock port %d and %s",
		s.TDX.QuoteVsock, s.TDX.QuoteUnix)
}
