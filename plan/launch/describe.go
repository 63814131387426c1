// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/snp"
)

// Chain has the parts of the boot files that a launch digest depends on.
type Chain struct {
	Firmware []byte
	Kernel   [sha256.Size]byte
	Initrd   [sha256.Size]byte // of nothing, if there is none
}

// Measured describes the data that the hardware measures at a VM's launch. Exactly one field is set.
type Measured struct {
	SNP  *snp.Description // QEMU's launch
	IGVM *snp.IGVMLaunch  // Cloud Hypervisor's, from an IGVM file with a kernel beside it
	TDX  []byte           // the firmware; TDX measures nothing else before the VM starts
}

// Describe returns the data that the hardware measures of a VM.
func Describe(v hypervisor.VMSpec, c Chain) (Measured, error) {
	hashes := &kernelhashes.Hashes{Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: kernelhashes.Cmdline(v.Boot.Cmdline)}
	switch {
	case v.TEE == hypervisor.TEESNP && v.SNP != nil && isIGVM(c.Firmware):
		f, err := igvm.Parse(c.Firmware)
		if err != nil {
			return Measured{}, fmt.Errorf("firmware: %w", err)
		}
		return Measured{IGVM: &snp.IGVMLaunch{File: f, Loader: snp.CloudHypervisorKVM, VCPUs: v.CPU.Count, Kernel: hashes}},
			nil
	case v.TEE == hypervisor.TEESNP && v.SNP != nil:
		sig, err := snp.ModelSignature(v.CPU.Model)
		if err != nil {
			return Measured{}, fmt.Errorf("hypervisor.cpu_model: %w", err)
		}
		return Measured{SNP: &snp.Description{
			Mode: snp.SNP, VMM: snp.QEMU, Firmware: c.Firmware, VCPUs: v.CPU.Count, Signature: sig,
			Features: snp.FeatureSNPActive,
			Kernel:   hashes,
		}}, nil
	case v.TEE == hypervisor.TEETDX && v.TDX != nil:
		return Measured{TDX: c.Firmware}, nil
	}
	return Measured{}, fmt.Errorf("measure VM %s: no hardware measures platform %q", v.ID, v.TEE)
}

// isIGVM tells whether firmware is an IGVM file, which Cloud Hypervisor launches by a rule of its own.
func isIGVM(firmware []byte) bool { return bytes.HasPrefix(firmware, []byte("IGVM")) }
