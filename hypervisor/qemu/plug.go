// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/qmp"
	"github.com/coco-shim/coco/internal/undo"
)

// BlockAddress tells where the guest finds a disk.
func (m *machine) BlockAddress(id string) (hypervisor.BlockAddress, bool) {
	n, ok := m.blockSlots().find(id)
	if !ok {
		return hypervisor.BlockAddress{}, false
	}
	return m.address(n), true
}

func (m *machine) address(n int) hypervisor.BlockAddress {
	if m.Spec.BlockBus == hypervisor.BlockSCSI {
		return hypervisor.BlockAddress{Driver: contract.DriverSCSI, Source: fmt.Sprintf("%d:0", n)}
	}
	return hypervisor.BlockAddress{Driver: contract.DriverBlk, Source: portPath(n)}
}

// PlugBlock attaches a disk while the VM runs. When it returns, the device is on its bus; on SCSI
// the guest has to scan for it.
func (m *machine) PlugBlock(ctx context.Context, b hypervisor.Block) (addr hypervisor.BlockAddress, err error) {
	var p problems
	p.block(b)
	if len(p) > 0 {
		return addr, fmt.Errorf("plug into VM %s: %w: %w", m.Spec.ID, p[0], errdefs.ErrInvalidArgument)
	}
	if err := m.plugBlock(ctx, b, &addr); err != nil {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug block device %s into VM %s: %w", b.ID, m.Spec.ID, m.OrDead(err))
	}
	return addr, nil
}

func (m *machine) plugBlock(ctx context.Context, b hypervisor.Block, addr *hypervisor.BlockAddress) (err error) {
	var u undo.Stack
	defer u.RunOnError(&err)
	n, err := m.blockSlots().take(b.ID)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	u.Push("free its place", func(context.Context) error { m.blockSlots().free(n); return nil })
	set, err := m.addFD(ctx, b.File)
	if err != nil {
		return err
	}
	// The node has its own duplicate; the set goes with it.
	defer m.dropFD(context.WithoutCancel(ctx), set)
	if err := m.qmp.Call(ctx, "blockdev-add", blockNode(b, set), nil); err != nil {
		return err
	}
	u.Push("remove the block node", func(ctx context.Context) error { return m.delNode(ctx, b.ID) })
	if err := m.qmp.Call(ctx, "device_add", diskDevice(m.Spec, n, b), nil); err != nil {
		return err
	}
	*addr = m.address(n)
	return nil
}

// addFD gives the VMM a duplicate of a file and returns the number of the set it is in.
func (m *machine) addFD(ctx context.Context, f *os.File) (int, error) {
	var r struct {
		Set int `json:"fdset-id"`
	}
	err := m.qmp.Call(ctx, "add-fd", nil, &r, f)
	return r.Set, err
}

// dropFD closes a set's own descriptors. An error means that a descriptor stays open in the VMM.
func (m *machine) dropFD(ctx context.Context, set int) {
	ctx, cancel := context.WithTimeout(ctx, undo.StepTimeout)
	defer cancel()
	if err := m.unlessDead(m.qmp.Call(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil)); err != nil {
		m.Log.Warn("descriptor left in the VMM", "vm", m.Spec.ID, "error", err)
	}
}

func (m *machine) delNode(ctx context.Context, id string) error {
	return m.unlessDead(m.qmp.Call(ctx, "blockdev-del", map[string]any{"node-name": nodeName(id)}, nil))
}

// UnplugBlock hot-unplugs a disk that the guest has stopped using. On PCI the guest has to confirm that; ctx bounds the
// wait.
func (m *machine) UnplugBlock(ctx context.Context, id string) error {
	n, ok := m.blockSlots().find(id)
	if !ok {
		return fmt.Errorf("unplug block device %s from VM %s: %w", id, m.Spec.ID, errdefs.ErrNotFound)
	}
	err := m.unplug(ctx, id)
	if err == nil {
		err = m.delNode(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("unplug block device %s from VM %s: %w", id, m.Spec.ID, m.OrDead(err))
	}
	m.blockSlots().free(n)
	return nil
}

// unplug removes a device and waits until the guest has let go of it.
func (m *machine) unplug(ctx context.Context, id string) error {
	name := deviceName(id)
	gone := m.removed.Expect(name)
	if err := m.qmp.Call(ctx, "device_del", map[string]any{"id": name}, nil); err != nil {
		var refusal *qmp.Error
		switch {
		case !errors.As(err, &refusal):
			return err
		case refusal.Class == "DeviceNotFound": // an earlier try was answered late
			return nil
		case strings.Contains(refusal.Description, "in the process of unplug"): // and this one not yet
		default:
			return err
		}
	}
	select {
	case <-gone:
		return nil
	case <-m.Done():
		return m.Err()
	case <-ctx.Done():
		return fmt.Errorf("the guest has not let go of it: %w", context.Cause(ctx))
	}
}

// PlugNIC attaches an interface while the VM runs and returns its PCI path.
func (m *machine) PlugNIC(ctx context.Context, n hypervisor.NIC) (path string, err error) {
	var p problems
	p.nic(n)
	if len(p) > 0 {
		return "", fmt.Errorf("plug into VM %s: %w: %w", m.Spec.ID, p[0], errdefs.ErrInvalidArgument)
	}
	if path, err = m.plugNIC(ctx, n); err != nil {
		return "", fmt.Errorf("plug network interface %s into VM %s: %w", n.ID, m.Spec.ID, m.OrDead(err))
	}
	return path, nil
}

func (m *machine) plugNIC(ctx context.Context, n hypervisor.NIC) (path string, err error) {
	var u undo.Stack
	defer u.RunOnError(&err)
	port, err := m.ports.take(n.ID)
	if err != nil {
		return "", fmt.Errorf("%w: raise hypervisor.hotplug_ports, or connect the network before the pod starts: %w",
			err, errdefs.ErrFailedPrecondition)
	}
	u.Push("free its port", func(context.Context) error { m.ports.free(port); return nil })
	names := ""
	for q, f := range n.Tap {
		name := fmt.Sprintf("tap-%s-%d", n.ID, q)
		if err := m.qmp.Call(ctx, "getfd", map[string]any{"fdname": name}, nil, f); err != nil {
			return "", err
		}
		u.Push("close "+name, func(ctx context.Context) error {
			_ = m.qmp.Call(ctx, "closefd", map[string]any{"fdname": name}, nil) // netdev_add may have taken it
			return nil
		})
		names += ":" + name
	}
	netdev := map[string]any{"type": "tap", "id": nodeName(n.ID), "fds": names[1:], "vhost": false}
	if err := m.qmp.Call(ctx, "netdev_add", netdev, nil); err != nil {
		return "", err
	}
	u.Push("remove the network backend", func(ctx context.Context) error { return m.delNetdev(ctx, n.ID) })
	dev := nicDevice(m.Spec, n)
	dev["bus"] = portID(port)
	if err := m.qmp.Call(ctx, "device_add", dev, nil); err != nil {
		return "", err
	}
	return portPath(port), nil
}

func (m *machine) delNetdev(ctx context.Context, id string) error {
	return m.unlessDead(m.qmp.Call(ctx, "netdev_del", map[string]any{"id": nodeName(id)}, nil))
}

// UnplugNIC hot-unplugs an interface. The guest has to confirm that; ctx bounds the wait.
func (m *machine) UnplugNIC(ctx context.Context, id string) error {
	n, ok := m.ports.find(id)
	if !ok {
		return fmt.Errorf("unplug network interface %s from VM %s: %w", id, m.Spec.ID, errdefs.ErrNotFound)
	}
	err := m.unplug(ctx, id)
	if err == nil {
		err = m.delNetdev(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("unplug network interface %s from VM %s: %w", id, m.Spec.ID, m.OrDead(err))
	}
	m.ports.free(n)
	return nil
}

// unlessDead drops the errors of clean-up in a VMM that is gone with all it had.
func (m *machine) unlessDead(err error) error {
	select {
	case <-m.qmp.Done():
		return nil
	default:
		return err
	}
}
