// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package precheck refuses confidential VMs whose firmware could not start, or would start a kernel without
// measuring it. It reads the firmware through the descriptor that QEMU gets. The driver checks the rest of the
// VM's description.
package precheck

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/ovmf"
)

// maxFirmware is far above any real image; QEMU's own limit is lower.
const maxFirmware = 64 << 20

// Firmware is for qemu.Options.Precheck.
func Firmware(spec hypervisor.VMSpec) error {
	if spec.TEE == hypervisor.TEENone {
		return nil
	}
	advice := "use an OVMF build with TDX metadata, such as edk2's OvmfPkg/IntelTdx"
	if spec.TEE == hypervisor.TEESNP {
		advice = "use an OVMF build that checks kernel hashes on SNP, such as edk2's OvmfPkg/AmdSev"
	}
	fw, err := read(spec)
	if err != nil {
		return err
	}
	if err := problem(spec, fw); err != nil {
		return fmt.Errorf("firmware %s: %w; %s: %w", spec.Boot.Firmware.Name(), err, advice, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func problem(spec hypervisor.VMSpec, fw []byte) error {
	im, err := ovmf.Parse(fw)
	if err != nil {
		return err
	}
	if spec.TEE == hypervisor.TEESNP {
		return im.SNPLaunchProblem(spec.Boot.Kernel != nil)
	}
	return im.TDXLaunchProblem()
}

// read reads the firmware without moving the descriptor's offset.
func read(spec hypervisor.VMSpec) ([]byte, error) {
	f := spec.Boot.Firmware
	if f == nil {
		return nil, fmt.Errorf("%s needs firmware: %w", spec.TEE, errdefs.ErrFailedPrecondition)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxFirmware {
		return nil, fmt.Errorf("firmware %s is not a file of at most %d bytes: %w", f.Name(), maxFirmware, errdefs.ErrFailedPrecondition)
	}
	fw := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), fw); err != nil {
		return nil, fmt.Errorf("read firmware %s: %w", f.Name(), err)
	}
	return fw, nil
}
