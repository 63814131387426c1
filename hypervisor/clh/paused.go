// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"fmt"

	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
)

// Paused asks the VMM whether the VM stands still.
func (m *machine) Paused(ctx context.Context) (bool, error) {
	var info clhapi.VmInfo
	if err := m.api.get(ctx, "vm.info", &info); err != nil {
		return false, fmt.Errorf("state of VM %s: %w", m.Spec.ID, err)
	}
	return info.State == clhapi.Paused, nil
}
