// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootfiles

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/plan/launch"
)

// Precheck is for the driver of a type of VMM: it refuses before launch what launch.CheckFirmware refuses. It reads the
// firmware through the descriptor that the VMM gets.
func Precheck(vmm string) func(hypervisor.VMSpec) error {
	return func(v hypervisor.VMSpec) error {
		if v.TEE == hypervisor.TEENone {
			return nil
		}
		f := v.Boot.Firmware
		if f == nil {
			return fmt.Errorf("platform %s needs firmware: %w", v.TEE, errdefs.ErrFailedPrecondition)
		}
		firmware, err := Firmware(context.Background(), f)
		if err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
		if err := launch.CheckFirmware(vmm, v, firmware); err != nil {
			return fmt.Errorf("firmware %s: %w: %w", f.Name(), err, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
}
