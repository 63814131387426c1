// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package precheck refuses SNP VMs whose IGVM file does not match the VM's description. It reads the
// file through the descriptor that the VMM gets. The driver checks the rest of the description, and package
// plan/launch computes the digest.
package precheck

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/igvm"
)

const (
	maxIGVM  = 64 << 20 // firmware only; the kernel travels beside it
	snpDebug = 1 << 19  // SEV-SNP firmware ABI, guest policy: DEBUG
)

// IGVM is for clh.Options.Precheck.
func IGVM(spec hypervisor.VMSpec) error {
	if spec.TEE != hypervisor.TEESNP {
		return nil
	}
	if spec.Boot.Firmware == nil || spec.SNP == nil {
		return fmt.Errorf("snp needs an IGVM file and settings: %w", errdefs.ErrFailedPrecondition)
	}
	if err := problem(spec); err != nil {
		return fmt.Errorf("IGVM file %s: %w; make one with coco measure igvm create: %w", spec.Boot.Firmware.Name(), err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func problem(spec hypervisor.VMSpec) error {
	f := spec.Boot.Firmware
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxIGVM {
		return fmt.Errorf("it is not a file of at most %d bytes", maxIGVM)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), b); err != nil {
		return err
	}
	file, err := igvm.Parse(b)
	if err != nil {
		return err
	}
	if _, ok := file.HasPlatform(igvm.SEVSNP); !ok {
		return errors.New("it is not for SEV-SNP")
	}
	if !file.HasPolicy {
		return errors.New("it has no guest policy")
	}
	if file.Policy != spec.SNP.Policy {
		return fmt.Errorf("its guest policy is %#x, and the VMM takes that one; hypervisor.snp_guest_policy is %#x", file.Policy, spec.SNP.Policy)
	}
	if file.Policy&snpDebug != 0 && !spec.SNP.InsecureDebug {
		return fmt.Errorf("its guest policy %#x allows debugging: the host could read the guest's memory", file.Policy)
	}
	return nil
}
