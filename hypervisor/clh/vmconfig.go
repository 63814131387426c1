// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
)

// Names that the VMM knows devices by, and files in the VM's private directory.
const (
	vsockDevice  = "vsock0"
	guestCID     = 3 // the VMM's socket tells VMs apart, so all can have the same
	entropy      = "/dev/urandom"
	apiSocket    = "api.sock"
	vsockSocket  = "vsock.sock"
	consoleFIFO  = "console"
	firstFD      = 3 // the descriptor of Command.Files[0]
	apiFD        = firstFD
	eventsFD     = firstFD + 1
	ownFiles     = 2 // in front of those of the VM's description
	virtioParent = "_virtio-pci-"
)

// Params are the inputs of a VM's launch besides its description.
type Params struct {
	Binary    string
	NoSeccomp bool   // without the VMM's system call filters
	Dir       string // private directory of the VM
	// Landlock confines the VMM to the files of the VM, Dir and Plugged.
	Landlock bool
	Plugged  string            // where the VMM finds disks that are plugged later
	Staging  string            // where they get a name for that
	placer   hypervisor.Placer // shows them to the VMM; nil: it sees the host's files
}

// Command is a command line with the files that it needs: Files[i] must be descriptor 5+i. Descriptor
// 3 is the listening socket of the API, descriptor 4 takes events.
type Command struct {
	Argv  []string
	Files []*os.File
}

// Build makes the VMM's command line and the description of the VM that is sent to it. It is a pure
// function of its arguments; of files it uses the identity only. The spec must be valid. Interfaces
// are not part of either: their taps travel with requests of their own.
func Build(spec hypervisor.VMSpec, par Params) (Command, clhapi.VmConfig) {
	var cmd Command
	path := func(f *os.File) string {
		if f == nil {
			return ""
		}
		cmd.Files = append(cmd.Files, f)
		return fmt.Sprintf("/proc/self/fd/%d", firstFD+ownFiles+len(cmd.Files)-1)
	}
	cmd.Argv = []string{
		par.Binary, "--api-socket", fmt.Sprintf("fd=%d", apiFD), "--event-monitor", fmt.Sprintf("fd=%d", eventsFD),
		"--seccomp", fmt.Sprint(!par.NoSeccomp),
	}
	c := clhapi.VmConfig{
		Cpus:    clhapi.CpusConfig{BootVcpus: spec.CPU.Count, MaxVcpus: spec.CPU.Count},
		Memory:  clhapi.MemoryConfig{Size: int64(spec.MemoryMiB) << 20}, //nolint:gosec // validated
		Payload: payload(spec, path),
		Rng:     clhapi.RngConfig{Src: entropy},
		Serial:  clhapi.ConsoleConfig{Mode: clhapi.File, File: filepath.Join(par.Dir, consoleFIFO)},
		Console: clhapi.ConsoleConfig{Mode: clhapi.Off},
		Pvpanic: true,
		Vsock:   clhapi.VsockConfig{Id: vsockDevice, Cid: guestCID, Socket: filepath.Join(par.Dir, vsockSocket)},
	}
	if spec.TEE == hypervisor.TEESNP {
		c.Platform = &clhapi.PlatformConfig{SevSnp: true}
	}
	for _, b := range spec.Blocks {
		c.Disks = append(c.Disks, diskConfig(b, path(b.File)))
	}
	if par.Landlock {
		c.LandlockEnable = true
		c.LandlockRules = []clhapi.LandlockConfig{{Path: par.Plugged, Access: clhapi.Rw}}
	}
	return cmd, c
}

// payload describes the VM's boot files. On SNP firmware comes from the IGVM file; a kernel beside it is handed
// to the firmware, and its hashes are measured.
func payload(spec hypervisor.VMSpec, path func(*os.File) string) clhapi.PayloadConfig {
	var p clhapi.PayloadConfig
	if spec.TEE == hypervisor.TEESNP {
		p.Igvm, p.HostData = path(spec.Boot.Firmware), hex.EncodeToString(spec.SNP.HostData[:])
		if spec.Boot.Kernel == nil {
			return p
		}
		p.FwCfgConfig = &clhapi.FwCfgConfig{
			E820: true, Kernel: true, Cmdline: true, Initramfs: spec.Boot.Initrd != nil,
			AcpiTables: true,
		}
	}
	p.Kernel, p.Initramfs, p.Cmdline = path(spec.Boot.Kernel), path(spec.Boot.Initrd), spec.Boot.Cmdline
	return p
}

// Names of devices: disks and interfaces share one name space in the VMM.
func diskName(id string) string { return "disk-" + id }
func nicName(id string) string  { return "net-" + id }

// diskConfig describes a disk. Its format is named, since the VMM would otherwise probe the image,
// whose content the guest controls. A read-only disk is not sparse: nothing of it can be
// discarded, and the VMM would warn of it.
func diskConfig(b hypervisor.Block, path string) clhapi.DiskConfig {
	return clhapi.DiskConfig{
		Id: diskName(b.ID), Path: path, Readonly: b.ReadOnly, ImageType: clhapi.Raw, Sparse: !b.ReadOnly, Serial: b.ID,
	}
}

// netConfig describes an interface whose taps are passed beside the request. The VMM offers the guest the MTU that the
// tap has. It is not named here: the VMM would set it on the tap, for which it has no privilege.
func netConfig(n hypervisor.NIC) clhapi.NetConfig {
	return clhapi.NetConfig{Id: nicName(n.ID), Mac: n.MAC, NumQueues: 2 * len(n.Tap)}
}
