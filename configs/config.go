// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package configs is the host's configuration: its schema, its defaults, a strict TOML decoder,
// validation, and the overrides that a pod's annotations may make.
//
// Text becomes a Config once, in Load or Decode, and is not written to afterwards. Decoding reports
// every problem at once, each with file, line, key and the expected values. A table (schema.go) holds,
// for each key, the field of Config, the allowed values and whether an annotation may set it. The
// decoder, the annotations and the documentation's test all read that table.
//
// The package reads configuration files and the guest image's manifest and looks whether files
// exist (Boot, CheckFiles). It does not start or probe anything.
package configs

import "time"

// Duration is written in TOML as a string: "60s", "1m30s".
type Duration = time.Duration

// MinMemoryMiB is the least guest memory that a stock kernel and the agent boot in.
const MinMemoryMiB = 128

// Config is the whole configuration. Treat it as a value: nothing writes to it after it was loaded.
type Config struct {
	Hypervisor Hypervisor
	Runtime    Runtime
	Network    Network
	VTPM       VTPM

	// Files are the files this came from, in the order they were merged; empty for the built-in
	// defaults. It is not a key.
	Files []string
}

// Hypervisor says which VMM runs a pod's VM and what the VM looks like.
type Hypervisor struct {
	Type     string // VMM driver: "qemu" or "clh"
	Path     string // absolute path of the VMM binary
	Machine  string // machine type, "q35"
	Accel    string // "", "kvm" or "tcg"; "" lets the driver choose
	Platform string // "none", "vtpm", "snp" or "tdx"

	GuestDir     string // directory of the guest image; "" is found relative to the executable
	Kernel       string // "" is the guest image's kernel for the platform
	Initrd       string // "" is the guest image's initramfs
	Firmware     string // "" is the VMM's built-in loader; a TEE needs one
	KernelParams string // words appended to the guest image's own command line
	Initdata     string // TOML file with the initdata of pods that bring none; "" is none

	CPUModel          string // VMM's name of a CPU model; "" lets the driver choose
	DefaultVCPUs      int    // for a pod without a CPU limit
	MaxVCPUs          int    // upper bound for any pod; 0 is the number of the host's CPUs
	DefaultMemoryMiB  uint64 // for a pod without a memory limit
	MaxMemoryMiB      uint64 // upper bound for any pod; 0 is the host's memory
	OverheadMemoryMiB uint64 // added to a pod's memory limit for guest kernel and agent

	BlockBus     string   // "virtio-scsi" or "virtio-blk"
	HotplugPorts int      // empty PCIe root ports made at boot
	BootTimeout  Duration // from exec of the VMM to the agent's answer

	// For platform "snp" and "tdx".
	SNPGuestPolicy   uint64 // guest policy of an SNP launch (AMD 56860, table 10)
	InsecureSNPDebug bool   // accept a policy that lets the host read and change the guest's memory
	SNPIDBlock       string // "anonymous", "author" or "none": the ID block that pins the digest of an SNP launch
	TDXQuoteSocket   string // quote generation service: "", "vsock:PORT" on the host, or a Unix socket's path

	FirstUser  uint64   // user ids of VMMs: the first of them
	Users      uint64   // and how many: each pod has one
	ExtraPaths []string // files and directories of the host that the VMM needs to start

	Seccomp              bool // the VMM's own system call filter
	Landlock             bool // Cloud Hypervisor confines itself to the VM's files
	InsecureDebugConsole bool // keep the guest's console verbose; refused on a TEE
}

// HostPathLive is the value of runtime.host_path with which files of the host are not copied.
const HostPathLive = "live"

// How containers of engines without pods (Docker, nerdctl, ctr) see the host's files.
const (
	BindsLive     = "live"      // the files themselves
	BindsReadOnly = "read-only" // copies of what is mounted read-only; other mounts are refused
)

// LiveBinds says whether bind mounts and volumes of engines without pods are the host's own files. Unless that is
// configured, they are where it can be done.
func (c Config) LiveBinds() bool {
	if c.Runtime.Binds == "" {
		return c.Hypervisor.Platform == "none" && c.Hypervisor.Type == TypeQEMU
	}
	return c.Runtime.Binds == BindsLive
}

// Whether what a container of such an engine writes to its root file system is there after its end.
const (
	KeepFiles = "on"  // it is brought back to the engine's directory
	DropFiles = "off" // it ends with the VM
)

// KeepsFiles says whether it is. Unless that is configured, it is where no platform protects the guest from its host.
func (c Config) KeepsFiles() bool {
	if c.Runtime.KeepFiles == "" {
		return c.Hypervisor.Platform == "none"
	}
	return c.Runtime.KeepFiles == KeepFiles
}

// Whether VMs start from templates.
const (
	TemplatePrivate = "private" // from one that fits, with memory of their own
	TemplateOff     = "off"
)

// Where a container's writable layer lies.
const (
	WritableDisk   = "disk"   // a sparse file of the host that the guest encrypts
	WritableMemory = "memory" // a tmpfs of the guest
)

// UpperMiB is the limit of a container's writable layer.
func (r Runtime) UpperMiB() uint64 {
	switch {
	case r.UpperSizeMiB > 0:
		return r.UpperSizeMiB
	case r.WritableLayer == WritableMemory:
		return 256
	}
	return 16 << 10
}

// Runtime is what the shim does around the VM.
type Runtime struct {
	StateDir          string   // per-pod sockets and locks, on a tmpfs
	LayerCache        string   // converted image layers
	LayerCacheSizeMiB uint64   // of all of them; 0: half of their file system
	WritableLayer     string   // where what containers write to their root lies: "disk" or "memory"
	UpperSizeMiB      uint64   // limit of a container's writable layer; 0: 16384 on a disk, 256 in memory
	ScratchDir        string   // disks of writable layers that no snapshot has room for
	MaxCopyMiB        uint64   // limit of a bind-mounted file or directory that is copied in
	EmptyDirSizeMiB   uint64   // of an emptyDir on disk, a sparse file; 0: that of the host's file system
	HostPath          string   // files of the host in a container: "read-only", "writable", "live" or "refused"
	Binds             string   // bind mounts of Docker, nerdctl, ctr: "live", "read-only"; "": LiveBinds chooses
	KeepFiles         string   // what containers of these engines write to their root: "on", "off"; "": KeepsFiles chooses
	KubeletDirs       []string // root directories of kubelets, whose volumes are known by their paths
	EngineDirs        []string // root directories of container engines beside the containerd that calls
	Virtiofsd         string   // program for live files of the host; "" is looked for where distributions have it
	// limits of processes that ask for none, "nofile=1024:4096"; limits that are not named are containerd's
	Rlimits           []string
	CreateTimeout     Duration // for creating a container in the guest
	StopTimeout       Duration // for a graceful stop before the VM is killed, and for a process to end after SIGKILL
	HealthInterval    Duration // between two questions whether the agent lives
	HealthMisses      int      // how many intervals it may be silent before the VM is ended; 0: for ever
	Template          string   // whether VMs start from saved ones: "private" or "off"
	Standby           int      // how many VMs of each description wait, booted, for their pods; 0: none
	LogLevel          string   // "error", "warn", "info" or "debug"
	EnableAnnotations []string // "section.key" that pods may set by annotation
	Rehearse          string   // configuration of a TEE whose launch digest is published too; "" is none
}

// VTPM is the virtual TPM of each pod on platform "vtpm".
type VTPM struct {
	Program string // absolute path of swtpm
	CA      string // directory of the CA that certifies the TPMs' attestation keys; "": none does
}

// Network is how the pod's interfaces reach the VM.
type Network struct {
	Model        string // "tcfilter" or "none"
	QueuesPerNIC int    // queue pairs of each virtio network interface
}

// Default is the configuration without any file.
func Default() Config {
	return Config{
		Hypervisor: Hypervisor{
			Type:              "qemu",
			Path:              "/usr/bin/qemu-system-x86_64",
			Machine:           "q35",
			Platform:          "none",
			DefaultVCPUs:      1,
			DefaultMemoryMiB:  512,
			OverheadMemoryMiB: 96,
			BlockBus:          "virtio-scsi",
			HotplugPorts:      1,
			BootTimeout:       60 * time.Second,
			SNPGuestPolicy:    snpPolicySMT | snpPolicyReserved1,
			SNPIDBlock:        "anonymous",
			FirstUser:         1_900_000_000,
			Users:             65536,
			ExtraPaths:        []string{},
			Seccomp:           true,
		},
		Runtime: Runtime{
			StateDir:      "/run/coco",
			LayerCache:    "/var/lib/coco/layers",
			WritableLayer: WritableDisk,
			ScratchDir:    "/var/lib/coco/scratch",
			MaxCopyMiB:    32,
			Rlimits:       []string{},
			HostPath:      "read-only",
			KubeletDirs:   []string{"/var/lib/kubelet", "/var/lib/k0s/kubelet", "/var/snap/microk8s/common/var/lib/kubelet"},
			EngineDirs: []string{
				"/run/containers/storage", "/var/lib/containers/storage", "/var/lib/docker",
				"/var/lib/nerdctl",
			},
			CreateTimeout:     60 * time.Second,
			StopTimeout:       30 * time.Second,
			HealthInterval:    30 * time.Second,
			HealthMisses:      10,
			Template:          TemplatePrivate,
			LogLevel:          "info",
			EnableAnnotations: []string{"hypervisor.default_vcpus", "hypervisor.default_memory_mib"},
		},
		Network: Network{Model: "tcfilter", QueuesPerNIC: 1},
		VTPM:    VTPM{Program: "/usr/bin/swtpm"},
	}
}
