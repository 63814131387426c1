// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
)

const firstFD = 3 // the descriptor of Command.Files[0]

// DefaultTCGCacheMiB bounds QEMU's cache of translated code. QEMU's own default is 1 GiB.
const DefaultTCGCacheMiB = 128

// Params are the inputs of a command line besides the VM's description.
type Params struct {
	Binary      string
	TCGCacheMiB int
	NoSandbox   bool // without QEMU's system call filter
	// Cloneable adds the device that tells a guest that it is a copy. Incoming has the VMM wait for a state to be
	// loaded instead of booting. Unconnected leaves the agent's channel without a peer.
	Cloneable, Incoming, Unconnected bool
	// CBitPos and ReducedPhysBits are the processor's, CPUID 8000001F EBX; only for SNP.
	CBitPos, ReducedPhysBits int
	// Agent, Control and Console are the VMM's ends of socket pairs.
	Agent, Control, Console *os.File
}

// Command is a command line with the files that it refers to: Files[i] must be descriptor 3+i.
type Command struct {
	Argv  []string
	Files []*os.File
}

// builder collects a command line.
type builder struct {
	cmd    Command
	spec   hypervisor.VMSpec
	par    Params
	tables bool // see Tables
}

// Build makes the command line of a VM. It is a pure function of its arguments; of files it
// uses the identity only. The spec must be valid and its accelerator decided.
func Build(spec hypervisor.VMSpec, par Params) Command {
	b := &builder{spec: spec, par: par}
	b.cmd.Argv = []string{par.Binary}
	b.build()
	return b.cmd
}

func (b *builder) build() {
	b.base()
	b.platform()
	if !b.tables {
		b.boot()
	}
	b.channels()
	b.tpm()
	b.skeleton()
	b.cloning()
	for i, blk := range b.spec.Blocks {
		b.block(i, blk)
	}
	for i, n := range b.spec.NICs {
		b.nic(i, n)
	}
	if f := b.spec.HostFiles; f != nil {
		b.arg("-chardev", fmt.Sprintf("socket,id=files0,fd=%d", b.fd(f.Socket)),
			"-device", fmt.Sprintf("vhost-user-fs-pci,id=fs0,bus=pcie.0,addr=%#x,chardev=files0,tag=%s", slotFiles, f.Tag))
	}
}

func (b *builder) arg(words ...string) { b.cmd.Argv = append(b.cmd.Argv, words...) }

// fd adds a file and returns its descriptor in the VMM.
func (b *builder) fd(f *os.File) int {
	b.cmd.Files = append(b.cmd.Files, f)
	return firstFD + len(b.cmd.Files) - 1
}

func (b *builder) path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", b.fd(f)) }

func (b *builder) base() {
	b.arg("-name", "coco-"+b.spec.ID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
	if !b.par.NoSandbox {
		b.arg("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	n := b.spec.CPU.Count
	b.arg("-smp", fmt.Sprintf("%d,maxcpus=%d", n, n), "-m", fmt.Sprintf("%dM", b.spec.MemoryMiB))
	if b.tables { // some builds lack the first; stopped, the second does as little
		b.arg("-accel", "qtest", "-accel", "tcg,tb-size=1", "-S")
		return
	}
	if b.spec.Accel == hypervisor.AccelKVM {
		b.arg("-accel", "kvm")
		return
	}
	cache := b.par.TCGCacheMiB
	if cache == 0 {
		cache = DefaultTCGCacheMiB
	}
	b.arg("-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", cache))
}

// platform sets machine, memory, processor and TEE. Devices of the machine that a pod does not
// use are off: they cost boot time, and on TDX they would be in measured tables.
func (b *builder) platform() {
	machine := b.spec.Machine +
		",memory-backend=ram0,smm=off,hpet=off,sata=off,smbus=off,i8042=off,vmport=off,dump-guest-core=off,mem-merge=off"
	memory, model := "memory-backend-ram", b.spec.CPU.Model
	switch b.spec.TEE {
	case hypervisor.TEESNP:
		memory = "memory-backend-memfd"
		b.tee(b.snp())
	case hypervisor.TEETDX:
		memory = "memory-backend-memfd"
		model = "host,pmu=off"
		machine += ",pic=off" // TDX has none; said here so that the tables are made without it wherever they are made
		b.tee(b.tdx())
	case hypervisor.TEENone:
		if model == "" {
			model = defaultModel(b.spec.Accel)
		}
	}
	if b.spec.TEE != hypervisor.TEENone {
		machine += ",kernel_irqchip=split"
		if !b.tables {
			machine += ",confidential-guest-support=tee0"
		}
	}
	if b.spec.HostFiles != nil {
		memory = "memory-backend-memfd,share=on" // with the server
	}
	if b.tables {
		model = "max" // not in the tables, and "host" needs KVM
	}
	b.arg("-machine", machine, "-cpu", model,
		"-object", fmt.Sprintf("%s,id=ram0,size=%dM", memory, b.spec.MemoryMiB))
}

func (b *builder) tee(object string) {
	if !b.tables {
		b.arg("-object", object)
	}
}

// defaultModel is the best model where nothing is measured. TCG executes the "rep movsb" that
// processors with ERMS and FSRM invite to byte by byte; without these flags kernel and Go
// runtime copy words, which makes bulk data two to four times faster.
func defaultModel(a hypervisor.Accel) string {
	if a == hypervisor.AccelKVM {
		return "host"
	}
	return "max,erms=off,fsrm=off"
}

// authorAlgo is the offset in an ID authentication of the author key's algorithm; 0: there is no author key (AMD 56860,
// table 76).
const authorAlgo = 4

func (b *builder) snp() string {
	s, e := b.spec.SNP, base64.StdEncoding
	o := fmt.Sprintf("sev-snp-guest,id=tee0,cbitpos=%d,reduced-phys-bits=%d,policy=%#x,kernel-hashes=on,host-data=%s",
		b.par.CBitPos, b.par.ReducedPhysBits, s.Policy, e.EncodeToString(s.HostData[:]))
	if len(s.IDBlock) > 0 {
		o += ",id-block=" + e.EncodeToString(s.IDBlock) + ",id-auth=" + e.EncodeToString(s.IDAuth)
		if s.IDAuth[authorAlgo] != 0 {
			o += ",author-key-enabled=on"
		}
	}
	return o
}

func (b *builder) tdx() string {
	t := b.spec.TDX
	o := map[string]any{
		"qom-type": "tdx-guest", "id": "tee0",
		"mrconfigid": base64.StdEncoding.EncodeToString(t.MRConfigID[:]),
	}
	const hostCID = "2" // VMADDR_CID_HOST
	switch {
	case t.QuoteVsock != 0:
		o["quote-generation-socket"] = map[string]any{"type": "vsock", "cid": hostCID, "port": fmt.Sprint(t.QuoteVsock)}
	case t.QuoteUnix != "":
		o["quote-generation-socket"] = map[string]any{"type": "unix", "path": t.QuoteUnix}
	}
	return mustJSON(o)
}

func (b *builder) boot() {
	if f := b.spec.Boot.Firmware; f != nil {
		b.arg("-bios", b.path(f))
	}
	b.arg("-kernel", b.path(b.spec.Boot.Kernel))
	if f := b.spec.Boot.Initrd; f != nil {
		b.arg("-initrd", b.path(f))
	}
	b.arg("-append", b.spec.Boot.Cmdline)
}

// tpm connects the guest's TPM with the process that serves it.
func (b *builder) tpm() {
	if b.spec.Boot.TPM == nil || b.tables {
		return
	}
	b.arg("-chardev", fmt.Sprintf("socket,id=tpm0,fd=%d", b.fd(b.spec.Boot.TPM.Control)),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-crb,tpmdev=tpm0")
}

// channels connects the socket pairs: control, console, agent.
func (b *builder) channels() {
	if b.tables {
		b.arg("-chardev", "null,id=console", "-serial", "chardev:console", "-chardev", "null,id=agent")
		return
	}
	b.arg("-chardev", fmt.Sprintf("socket,id=control,fd=%d", b.fd(b.par.Control)), "-mon", "chardev=control,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", b.fd(b.par.Console)), "-serial", "chardev:console")
	if b.par.Unconnected {
		b.arg("-chardev", "null,id=agent") // which counts as closed
		return
	}
	b.arg("-chardev", fmt.Sprintf("socket,id=agent,fd=%d", b.fd(b.par.Agent)))
}

// cloning is what a VM has that is saved or starts from one that was.
func (b *builder) cloning() {
	if b.par.Cloneable {
		b.arg("-device", "vmgenid,guid=auto,id=generation")
	}
	if b.par.Incoming {
		b.arg("-incoming", "defer")
	}
}

// skeleton is the part of the PCI bus that every VM has.
func (b *builder) skeleton() {
	b.arg("-device", b.virtio("virtio-serial-pci", "serial0", slotSerial)+",max_ports=2",
		"-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent,id="+agentDevice+",name="+contract.SerialPort)
	if b.spec.BlockBus == hypervisor.BlockSCSI {
		b.arg("-device", b.virtio("virtio-scsi-pci", scsiDevice, slotSCSI)+",num_queues=1")
	}
	for n := range b.spec.HotplugPorts {
		b.arg("-device", fmt.Sprintf("pcie-root-port,id=%s,bus=pcie.0,addr=%#x,chassis=%d,slot=%d", portID(n),
			slotPorts+n, n+1, n+1))
	}
}

// virtio is a virtio device on the root bus.
func (b *builder) virtio(driver, id string, slot int) string {
	d := fmt.Sprintf("%s,id=%s,bus=pcie.0,addr=%#x,disable-legacy=on", driver, id, slot)
	if b.spec.TEE != hypervisor.TEENone {
		d += ",iommu_platform=on"
	}
	return d
}

// block attaches a disk from boot, in place i of its bus.
func (b *builder) block(i int, blk hypervisor.Block) {
	set := i + 1
	if b.tables {
		node := map[string]any{"driver": "null-co", "node-name": nodeName(blk.ID), "read-only": blk.ReadOnly}
		b.arg("-blockdev", mustJSON(node), "-device", mustJSON(b.diskDevice(i, blk)))
		return
	}
	b.arg("-add-fd", fmt.Sprintf("fd=%d,set=%d", b.fd(blk.File), set),
		"-blockdev", mustJSON(blockNode(blk, set)),
		"-device", mustJSON(b.diskDevice(i, blk)))
}

func (b *builder) diskDevice(i int, blk hypervisor.Block) map[string]any {
	return diskDevice(b.spec, i, blk)
}

// blockNode describes a disk image, given as a set of descriptors. Layers are shared among
// pods and never written: no locks are needed, and none must be in the way.
func blockNode(blk hypervisor.Block, set int) map[string]any {
	file := map[string]any{
		"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "locking": "off", "read-only": blk.ReadOnly,
	}
	if blk.Device {
		file["driver"] = "host_device"
	}
	node := map[string]any{"driver": "raw", "node-name": nodeName(blk.ID), "read-only": blk.ReadOnly, "file": file}
	if !blk.ReadOnly {
		node["discard"], file["discard"] = "unmap", "unmap" // blocks that the guest discards are freed on the host
	}
	return node
}

func nodeName(id string) string   { return "n-" + id }
func deviceName(id string) string { return "d-" + id }

// diskDevice describes the device in place n of the VM's block bus.
func diskDevice(spec hypervisor.VMSpec, n int, blk hypervisor.Block) map[string]any {
	// An id fits a serial as it is (ident.DeviceForm; VIRTIO_BLK_ID_BYTES is 20).
	d := map[string]any{"id": deviceName(blk.ID), "serial": blk.ID, "drive": nodeName(blk.ID), "share-rw": blk.ReadOnly}
	if !blk.ReadOnly {
		// A disk that the host has no room for is an error in the guest, not a VM that stands still.
		d["werror"], d["rerror"] = "report", "report"
	}
	if spec.BlockBus == hypervisor.BlockSCSI {
		d["driver"], d["bus"], d["scsi-id"], d["lun"] = "scsi-hd", scsiDevice+".0", n, 0
		return d
	}
	d["driver"], d["bus"] = "virtio-blk-pci", portID(n)
	d["disable-legacy"] = "on"
	if spec.TEE != hypervisor.TEENone {
		d["iommu_platform"] = true
	}
	return d
}

// nic attaches an interface from boot.
func (b *builder) nic(i int, n hypervisor.NIC) {
	if b.tables {
		b.arg("-netdev", fmt.Sprintf("hubport,id=%s,hubid=%d", nodeName(n.ID), i))
	} else {
		fds := make([]string, len(n.Tap))
		for q, f := range n.Tap {
			fds[q] = fmt.Sprint(b.fd(f))
		}
		b.arg("-netdev", fmt.Sprintf("tap,id=%s,fds=%s,vhost=off", nodeName(n.ID), strings.Join(fds, ":")))
	}
	d := nicDevice(b.spec, n)
	d["bus"], d["addr"] = "pcie.0", fmt.Sprintf("%#x", slotNICs+i)
	b.arg("-device", mustJSON(d))
}

// nicDevice describes an interface, without its place. It has no option ROM, which would not be
// measured.
func nicDevice(spec hypervisor.VMSpec, n hypervisor.NIC) map[string]any {
	d := map[string]any{
		"driver": "virtio-net-pci", "id": deviceName(n.ID), "netdev": nodeName(n.ID), "mac": n.MAC,
		"romfile": "", "disable-legacy": "on",
	}
	if n.MTU != 0 {
		d["host_mtu"] = n.MTU
	}
	if q := len(n.Tap); q > 1 {
		d["mq"], d["vectors"] = true, 2*q+2
	}
	if spec.TEE != hypervisor.TEENone {
		d["iommu_platform"] = true
	}
	return d
}

// mustJSON encodes values made here, of types that cannot fail. Keys are sorted.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
