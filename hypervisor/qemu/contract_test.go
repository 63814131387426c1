// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"testing"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/hypervisortest"
	"github.com/coco-shim/coco/hypervisor/vmm"
)

// begun is a VM that waits in a process.
func begun(t testing.TB, d *Driver, id string, p hypervisor.Process) hypervisor.Pending {
	t.Helper()
	fork := func(context.Context, hypervisor.Place) (hypervisor.Process, error) { return p, nil }
	pending, err := vmm.NewDriver(d, fork).Begin(t.Context(), hypervisor.Place{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return pending
}

func launchIn(t testing.TB, d *Driver, spec hypervisor.VMSpec, p hypervisor.Process) (hypervisor.VM, error) {
	t.Helper()
	return begun(t, d, spec.ID, p).Launch(t.Context(), spec)
}

func TestBeginContract(t *testing.T) {
	spec := vmSpec(t)
	hypervisortest.BeginContract(t, spec, func(t *testing.T) hypervisor.Pending {
		t.Helper()
		return begun(t, testDriver(t), spec.ID, launched(t))
	})
}

// The test init says nothing first, and echoes. Unplugging needs its PCI driver.
func TestContract(t *testing.T) {
	hypervisortest.Contract(t, "", func(t *testing.T) hypervisor.VM {
		t.Helper()
		spec := vmSpec(t)
		spec.HotplugPorts = 2
		vm, _ := boot(t, spec)
		tell(t, vm, "load")
		return vm
	})
}
