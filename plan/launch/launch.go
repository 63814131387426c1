// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package launch plans the launch of a pod's VM. From the configuration and the pod it computes the size of the VM,
// its description (hypervisor.VMSpec), the initdata that the launch is bound to, and the measurements that the
// hardware will report.
//
// For makes the plan. From the parts of the boot files that were read (Heads, Chain), Check decides whether the VM
// would start, Describe lists the inputs that the hardware measures, and Expect computes their digest.
//
// Its functions depend on nothing but their arguments: they read no file, no clock and nothing of the host, and pass
// descriptors on without reading from them. So the shim, `coco measure` and a verifier get the same answer for the
// same pod. Package virtcontainers opens and reads files, makes devices and starts the VM.
package launch

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/initdata"
)

// Input is all that a launch depends on.
type Input struct {
	ID      string          // names the VM, and is not measured
	Config  configs.Config  // with what the pod's annotations override
	Machine Machine         // bounds the size where Config does not
	Spec    *specs.Spec     // has the pod's limits; nil: none
	Boot    hypervisor.Boot // the command line counts; the files are passed on
	// Initdata is the value of the pod's annotation contract.KataInitdata; empty: the file that Config names, if any.
	Initdata string
	// ReadFile reads that file.
	ReadFile func(path string) ([]byte, error)
}

// Plan has the inputs of a VM's launch.
type Plan struct {
	Shape Shape
	// VM lacks what depends on the host: interfaces, disks, live files. None of it is in the launch digest.
	VM       hypervisor.VMSpec
	Initdata *initdata.Document // nil: none
	Parts    []string           // of the guest image that the VM gets as disks, behind that with the initdata
}

// For plans the launch of a pod's VM.
func For(in Input) (Plan, error) {
	shape, err := ShapeOf(in.Config.Hypervisor, in.Machine, in.Spec)
	if err != nil {
		return Plan{}, err
	}
	doc, err := document(in)
	if err != nil {
		return Plan{}, err
	}
	vm, err := bind(VM(in.ID, in.Config.Hypervisor, shape, in.Boot), doc)
	if err != nil {
		return Plan{}, err
	}
	return Plan{Shape: shape, VM: vm, Initdata: doc, Parts: Parts(doc)}, nil
}

// VM describes a VM of the configuration that has a given size and no initdata.
func VM(id string, h configs.Hypervisor, s Shape, boot hypervisor.Boot) hypervisor.VMSpec {
	v := hypervisor.VMSpec{
		ID: id, Machine: h.Machine, Accel: hypervisor.Accel(h.Accel),
		CPU: hypervisor.CPU{Count: s.VCPUs, Model: h.CPUModel}, MemoryMiB: s.MemoryMiB, Boot: boot,
		BlockBus: hypervisor.BlockBus(h.BlockBus), HotplugPorts: h.HotplugPorts, BootTimeout: h.BootTimeout,
	}
	switch h.Platform {
	case configs.PlatformVTPM:
		v.Boot.TPM = &hypervisor.TPM{}
	case "snp":
		v.TEE, v.SNP = hypervisor.TEESNP, &hypervisor.SNP{
			Policy: h.SNPGuestPolicy, InsecureDebug: h.InsecureSNPDebug,
			Pin: hypervisor.SNPPin(h.SNPIDBlock),
		}
	case "tdx":
		v.TEE, v.TDX = hypervisor.TEETDX, &hypervisor.TDX{}
		v.TDX.QuoteVsock, v.TDX.QuoteUnix = h.QuoteService()
	}
	return v
}
