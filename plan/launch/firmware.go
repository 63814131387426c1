// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/ovmf"
)

const snpDebug = 1 << 19 // SEV-SNP firmware ABI, guest policy: DEBUG

// CheckFirmware refuses firmware with which a confidential VM could not start, or would start a kernel that nobody
// measured. vmm is the configuration's type: Cloud Hypervisor takes an IGVM file, QEMU an OVMF image.
func CheckFirmware(vmm string, v hypervisor.VMSpec, firmware []byte) error {
	var err error
	advice := ""
	switch {
	case v.TEE == hypervisor.TEENone:
		return nil
	case vmm == configs.TypeCLH:
		advice, err = "make one with coco measure igvm create", igvmProblem(v, firmware)
	case v.TEE == hypervisor.TEESNP:
		err = ovmfProblem(firmware, func(im *ovmf.Image) error { return im.SNPLaunchProblem(true) })
		advice = "use an OVMF build that checks kernel hashes on SNP, such as edk2's OvmfPkg/AmdSev"
	default:
		err = ovmfProblem(firmware, (*ovmf.Image).TDXLaunchProblem)
		advice = "use an OVMF build with TDX metadata, such as edk2's OvmfPkg/IntelTdx"
	}
	if err != nil {
		return fmt.Errorf("%w; %s", err, advice)
	}
	return nil
}

func ovmfProblem(firmware []byte, problem func(*ovmf.Image) error) error {
	im, err := ovmf.Parse(firmware)
	if err != nil {
		return err
	}
	return problem(im)
}

// igvmProblem compares an IGVM file, which holds the guest policy, with the VM that is launched from it.
func igvmProblem(v hypervisor.VMSpec, firmware []byte) error {
	f, err := igvm.Parse(firmware)
	if err != nil {
		return err
	}
	if _, ok := f.HasPlatform(igvm.SEVSNP); !ok {
		return errors.New("it is not for SEV-SNP")
	}
	switch {
	case v.SNP == nil:
		return fmt.Errorf("an IGVM file is for platform snp, not for %q", v.TEE)
	case !f.HasPolicy:
		return errors.New("it has no guest policy")
	case f.Policy != v.SNP.Policy:
		return fmt.Errorf("its guest policy is %#x, and the VMM takes that one; hypervisor.snp_guest_policy is %#x",
			f.Policy, v.SNP.Policy)
	case f.Policy&snpDebug != 0 && !v.SNP.InsecureDebug:
		return fmt.Errorf("its guest policy %#x allows debugging: the host could read the guest's memory", f.Policy)
	}
	return nil
}
