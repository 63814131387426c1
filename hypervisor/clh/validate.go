// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

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
	maxCPUs      = 254 // of Cloud Hypervisor on x86 without interrupt remapping
	minMemoryMiB = 64  // no kernel with an initramfs of ours comes up with less
	maxMemoryMiB = 1 << 30
	maxCmdline   = 2047 // COMMAND_LINE_SIZE of x86 Linux, without the NUL
	maxUnixPath  = 107  // sun_path without its NUL
	minMTU       = 68   // of virtio-net (virtio 1.2, 5.1.4)
	// Slots of the one PCI bus: 32, less the host bridge, the random number generator, the vsock device and the
	// device by which a guest reports its panic.
	maxDevices = 32 - 4
)

// problems collects the errors in a spec.
type problems []error

func (p *problems) add(bad bool, format string, args ...any) {
	if bad {
		*p = append(*p, fmt.Errorf(format, args...))
	}
}

// Validate returns every reason why this driver cannot launch a spec: settings that Cloud Hypervisor does not have, and
// settings that it would silently treat differently.
func Validate(spec hypervisor.VMSpec) error {
	var p problems
	p.common(spec)
	p.devices(spec)
	switch spec.TEE {
	case hypervisor.TEENone:
		p.add(spec.Boot.TPM != nil, "a virtual TPM: only QEMU takes one")
		p.add(spec.SNP != nil || spec.TDX != nil, "settings of a TEE without one: set the platform")
		p.add(spec.Boot.Kernel == nil, "no kernel")
		p.add(spec.Boot.Firmware != nil, "firmware and a kernel: Cloud Hypervisor would boot the firmware alone")
	case hypervisor.TEESNP:
		p.snp(spec)
	case hypervisor.TEETDX:
		p.add(true, "TDX: Cloud Hypervisor's support needs a KVM interface that Linux never got, and its releases are "+
			"built without it; use QEMU")
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
	p.add(s.Machine != "", "machine %q: Cloud Hypervisor has one machine, without a name", s.Machine)
	switch s.Accel {
	case hypervisor.AccelAuto, hypervisor.AccelKVM:
	case hypervisor.AccelTCG:
		p.add(true, "accelerator tcg: Cloud Hypervisor runs on KVM only; use QEMU")
	default:
		p.add(true, "accelerator %q: want kvm or nothing", s.Accel)
	}
	p.add(s.CPU.Count < 1 || s.CPU.Count > maxCPUs, "%d vCPUs: want 1 to %d", s.CPU.Count, maxCPUs)
	p.add(s.CPU.Model != "" && s.CPU.Model != "host", "CPU model %q: Cloud Hypervisor shows guests the host's processor",
		s.CPU.Model)
	p.add(s.MemoryMiB < minMemoryMiB || s.MemoryMiB > maxMemoryMiB, "%d MiB of memory: want %d to %d", s.MemoryMiB,
		minMemoryMiB, maxMemoryMiB)
	p.add(len(s.Boot.Cmdline) > maxCmdline, "kernel command line of %d bytes: the kernel takes %d",
		len(s.Boot.Cmdline), maxCmdline)
	p.add(strings.ContainsAny(s.Boot.Cmdline, "\x00\n"), "kernel command line contains a newline or NUL")
	p.add(s.BootTimeout <= 0, "no boot timeout")
	p.add(s.HotplugPorts != 0, "%d hot-plug ports: Cloud Hypervisor plugs devices into its root bus and has no ports",
		s.HotplugPorts)
	p.add(s.BlockBus != hypervisor.BlockBlk, "block bus %q: Cloud Hypervisor has %s only", s.BlockBus, hypervisor.BlockBlk)
}

func (p *problems) devices(s hypervisor.VMSpec) {
	n := len(s.Blocks) + len(s.NICs)
	p.add(n > maxDevices, "%d disks and network interfaces: the PCI bus takes %d", n, maxDevices)
	ids := make(map[string]bool)
	for _, b := range s.Blocks {
		p.block(b)
		p.add(ids[diskName(b.ID)], "block device %q: id used twice", b.ID)
		ids[diskName(b.ID)] = true
	}
	for _, n := range s.NICs {
		p.nic(n, s.CPU.Count)
		p.add(ids[nicName(n.ID)], "network interface %q: id used twice", n.ID)
		ids[nicName(n.ID)] = true
	}
	p.add(s.HostFiles != nil, "files of the host: Cloud Hypervisor connects to their server by a path, which this "+
		"driver does not hand out; use QEMU")
}

func (p *problems) block(b hypervisor.Block) {
	p.add(!ident.Device(b.ID), "block device %q: id must match %s", b.ID, ident.DeviceForm)
	p.add(b.File == nil, "block device %q: no file", b.ID)
}

func (p *problems) nic(n hypervisor.NIC, vcpus int) {
	p.add(!ident.Device(n.ID), "network interface %q: id must match %s", n.ID, ident.DeviceForm)
	mac, err := net.ParseMAC(n.MAC)
	p.add(err != nil || len(mac) != 6, "network interface %q: MAC address %q is not one", n.ID, n.MAC)
	p.add(len(n.Tap) == 0, "network interface %q: no tap", n.ID)
	p.add(len(n.Tap) > vcpus, "network interface %q: %d pairs of queues for %d vCPUs, which is more than one each", n.ID,
		len(n.Tap), vcpus)
	p.add(n.MTU != 0 && (n.MTU < minMTU || n.MTU > 65535), "network interface %q: MTU %d, want %d to 65535",
		n.ID, n.MTU, minMTU)
}

func (p *problems) snp(s hypervisor.VMSpec) {
	p.add(s.TDX != nil, "settings of TDX for an SNP VM")
	p.add(s.Boot.Firmware == nil, "snp needs an IGVM file as firmware: without it nothing is measured")
	p.add(s.Boot.Kernel == nil && (s.Boot.Initrd != nil || s.Boot.Cmdline != ""),
		"an initramfs or a command line without a kernel")
	// Without a command line the VMM would hand the kernel to the firmware and measure nothing of it.
	p.add(s.Boot.Kernel != nil && s.Boot.Cmdline == "",
		"a kernel without a command line: Cloud Hypervisor would not measure it")
	p.add(s.Boot.Kernel != nil && s.Boot.Initrd == nil, "snp needs an initramfs: its hash binds the agent")
	if s.SNP == nil {
		p.add(true, "an SNP VM without SNP settings")
		return
	}
	// The IGVM file holds policy and ID block; launch.CheckFirmware compares the policy.
	p.add(len(s.SNP.IDBlock) != 0 || len(s.SNP.IDAuth) != 0,
		"an SNP ID block: Cloud Hypervisor takes it from the IGVM file (coco measure igvm create --id-block)")
}
