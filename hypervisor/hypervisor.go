// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hypervisor describes a virtual machine (VMSpec), the driver that starts one (Driver, Pending) and the
// operations on a running one (VM and the capability interfaces).
//
// A VMSpec is complete and immutable: it is the only input of the drivers and of the launch
// measurement, so the measured VM cannot differ from the launched one. No value that varies from
// pod to pod (ids, MAC addresses, paths of sockets) may reach a measured field; the comments
// of the fields say which are measured.
//
// A driver makes the place of a VM before the VM is described (Begin), because hooks, cgroups and networks need its pid
// and namespaces first. Drivers whose VMM is a process of this host get both from package vmm, which shares the life of
// such VMs among them; package launch forks the process.
package hypervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

// Accel is the way guest instructions are executed.
type Accel string

// The accelerators. The zero value lets the driver choose: KVM when usable, else TCG.
const (
	AccelAuto Accel = ""
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// TEE names the trusted execution environment that a VM is launched in.
type TEE string

// The platforms. The zero value is a plain VM that nobody can verify.
const (
	TEENone TEE = ""
	TEESNP  TEE = "snp"
	TEETDX  TEE = "tdx"
)

// BlockBus is the bus on which block devices are attached.
type BlockBus string

// The block buses. SCSI needs one fixed controller and no PCI hot-plug; Blk is one PCI function
// per device.
const (
	BlockSCSI BlockBus = "virtio-scsi"
	BlockBlk  BlockBus = "virtio-blk"
)

// VMSpec is the whole description of a VM.
type VMSpec struct {
	ID      string // sandbox id: names only, never measured
	Machine string // VMM machine type, "q35"; measured through ACPI on TDX
	Accel   Accel
	CPU     CPU
	// MemoryMiB is the guest's RAM, fixed at launch. Measured on TDX, not on SNP.
	MemoryMiB uint64
	Boot      Boot
	TEE       TEE
	SNP       *SNP // set exactly when TEE is TEESNP
	TDX       *TDX // set exactly when TEE is TEETDX
	BlockBus  BlockBus
	// HotplugPorts is the number of empty PCIe root ports made at boot, for BlockBlk and for
	// interfaces added later. Part of the fixed PCI skeleton.
	HotplugPorts int
	Blocks       []Block // present from boot
	NICs         []NIC   // present from boot
	// HostFiles is a file system of the host that the guest can mount; nil: none. Never with a TEE.
	HostFiles *HostFiles
	// BootTimeout bounds the time from exec of the VMM to the agent's answer.
	BootTimeout time.Duration
}

// CPU is the number and model of virtual processors. Both are measured on SNP.
type CPU struct {
	Count int
	Model string // VMM name, for example "max" or "EPYC-v4"; "" lets the driver choose
}

// Boot is the boot chain. On a TEE all of it is measured.
type Boot struct {
	Kernel   *os.File // opened once; drivers hand over this very descriptor
	Initrd   *os.File // may be nil
	Firmware *os.File // nil: the VMM's built-in loader (plain VMs only)
	Cmdline  string   // bytes as the kernel sees them
	TPM      *TPM     // what the firmware measures all of it into; nil: none. Never with a TEE
}

// TPM is a virtual TPM 2.0, served by a process of its own that swtpm's control protocol reaches.
type TPM struct {
	Control *os.File // connected with the process; the VMM gets a duplicate
}

// Measured reports whether something outside of the guest holds measurements of its boot: a TEE, or a virtual TPM.
func (s VMSpec) Measured() bool { return s.TEE != TEENone || s.Boot.TPM != nil }

// SNPPin says which ID block a launch gets, by which the AMD firmware refuses any other launch digest and policy.
type SNPPin string

// ID blocks without anyone's private key; the zero value is PinAnonymous. PinAuthor is for firmware that wants an
// author key too, and PinNone for firmware that takes no ID block: only a verifier notices a launch that goes
// differently then.
const (
	PinAnonymous SNPPin = "anonymous"
	PinAuthor    SNPPin = "author"
	PinNone      SNPPin = "none"
)

// SNP holds what an SEV-SNP launch needs beyond the common fields.
type SNP struct {
	Policy uint64
	// InsecureDebug accepts a Policy with the debug bit, with which nothing is confidential.
	InsecureDebug bool
	HostData      [32]byte
	Pin           SNPPin // how the launch digest is pinned
	IDBlock       []byte // 96 bytes or empty
	IDAuth        []byte // 4096 bytes or empty
}

// TDX holds what a TDX launch needs beyond the common fields.
type TDX struct {
	MRConfigID [48]byte
	QuoteVsock uint32 // vsock port of the quote generation service; 0: QuoteUnix
	QuoteUnix  string // unix socket of the quote generation service
}

// Block is a disk image on the host.
type Block struct {
	ID       string   // unique within the VM: [a-z0-9-]{1,20}; the guest sees it as the serial
	File     *os.File // opened by the caller, who keeps ownership; the VMM gets a duplicate
	ReadOnly bool
	Device   bool // File is a block device of the host
}

// BlockAddress is where the guest finds a block device, in the terms of the agent protocol.
type BlockAddress struct {
	Driver string // of the agent's storage: DriverSCSI or DriverBlk of api/contract
	Source string // "TARGET:LUN" for scsi, PCI path ("02" or "02/00") for blk
}

// HostFiles is a virtio-fs device. The process that serves it reads and writes the guest's memory, which
// is shared with it for that.
type HostFiles struct {
	Tag    string   // by which the guest mounts it
	Socket *os.File // connected with the server, vhost-user; the VMM gets a duplicate
}

// NIC is a virtio network interface on a tap that already exists.
type NIC struct {
	ID  string
	MAC string     // never measured
	Tap []*os.File // one descriptor per queue, opened with IFF_VNET_HDR
	MTU int        // the tap has it already
}

// Process is the forked but not yet executed VMM process: it already lives in the pod's
// namespaces and cgroup. Exec turns it into the VMM. Package launch implements it.
type Process interface {
	// PID is stable across Exec: task pid = launcher pid = VMM pid.
	PID() int
	// Exec replaces the waiting process by argv[0]. files appear from descriptor 3 on,
	// in order. It returns when execve has succeeded or failed.
	Exec(ctx context.Context, argv, env []string, files []*os.File) error
	// Done is closed when the process has ended and was reaped.
	Done() <-chan struct{}
	// ExitStatus says how it ended, in words ("exit status 1", "signal: killed"); valid
	// after Done.
	ExitStatus() string
	// Kill ends the process with SIGKILL; it may be called at any time and more than once.
	Kill() error
	// Stderr is the tail of what the process wrote to its standard error.
	Stderr() string
}

// End kills the process and waits until it is gone.
func End(ctx context.Context, proc Process) error {
	if err := proc.Kill(); err != nil {
		return err
	}
	select {
	case <-proc.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d did not end: %w", proc.PID(), context.Cause(ctx))
	}
}

// Emptier is a process whose root has what a program needs to start. A driver calls Empty once the VMM
// has all that it needs open.
type Emptier interface {
	Empty() error
}

// Placer is a process whose root does not have the files of the host. A driver whose VMM opens files by name calls
// Place for each that comes after the start.
type Placer interface {
	// Places is the directory where they appear to the process; "": there is no need, it sees what the host has.
	Places() string
	// User is the uid and gid of the process, which must own the files that it writes to by name.
	User() uint32
	// Place shows a file under a name, and returns the process's path of it, until Displace.
	Place(file *os.File, name string, readOnly bool) (string, error)
	Displace(name string) error
}

// Driver makes VMs of one kind, in two steps: the pod's hooks, cgroups and network need the place of the VM, and the
// description of the VM needs what they find out.
type Driver interface {
	// Name is the driver's name in configuration and errors, for example "qemu".
	Name() string
	// Begin makes the place where a VM will run. The caller ends it: with Abort, or with the VM's Stop after Launch.
	Begin(ctx context.Context, p Place) (Pending, error)
}

// Place is where a VM runs and what its VMM may do there.
type Place struct {
	ID        string // sandbox id, as in the VMSpec that follows
	NetNS     string // path of the network namespace that the VMM lives in
	User      uint32 // uid and gid of the VMM
	Dir       string // private directory for the VMM's sockets, with a short path; made before Launch
	Processes uint64 // most processes and threads
}

// Pending is a VM that has a place and no description yet.
type Pending interface {
	// PID is the VMM's process on this host, which stays the same until the VM's end. 0 says that there is none: the
	// VM will run on another machine.
	PID() int
	// Launch makes a VM of it and returns when the guest was released. It does not wait for the agent: that is what
	// VM.Dial is for. It is called once. On error it leaves nothing behind.
	Launch(ctx context.Context, spec VMSpec) (VM, error)
	// Abort gives the place up, before Launch or after it, and waits until nothing is left. It may be called at any
	// time and more than once.
	Abort(ctx context.Context) error
	// Done is closed when the place is gone, by Abort or by itself.
	Done() <-chan struct{}
	// Err is nil before Done; then it says why the place is gone: a *DeadError.
	Err() error
}

// VM is a running virtual machine.
type VM interface {
	ID() string
	// Dial connects to a port of the guest. It waits until the guest accepts connections or
	// the VM dies or ctx ends; the error then names the boot phase that was reached and
	// carries the last console lines.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Done is closed once the VMM process is gone.
	Done() <-chan struct{}
	// Err is nil while the VM runs; after Done it says why it ended: a *DeadError.
	Err() error
	// Console returns the last lines of the guest's console.
	Console() []string
	// Stop ends the VM: asks the VMM to quit, kills it when ctx ends, waits until it is gone
	// and releases everything that Begin and Launch made. Idempotent.
	Stop(ctx context.Context) error
}
