// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
)

// forGood are the states (RunState of QEMU's QAPI) in which a VM's processors are stopped and will not run again.
var forGood = map[string]bool{"internal-error": true, "guest-panicked": true, "shutdown": true, "watchdog": true}

// Paused asks QEMU whether the VM stands still, and could go on: it was paused, or waits for room on a disk.
func (m *machine) Paused(ctx context.Context) (bool, error) {
	var st struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	if err := m.qmp.Call(ctx, "query-status", nil, &st); err != nil {
		return false, fmt.Errorf("state of VM %s: %w", m.Spec.ID, err)
	}
	return !st.Running && !forGood[st.Status], nil
}
