// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/undo"
)

// BlockAddress tells where the guest finds a disk: its slot on the first PCI bus.
func (m *machine) BlockAddress(id string) (hypervisor.BlockAddress, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr, ok := m.devices[diskName(id)]
	if !ok || addr.slot == "" {
		return hypervisor.BlockAddress{}, false
	}
	return blockAddress(addr), true
}

func blockAddress(a pciAddress) hypervisor.BlockAddress {
	return hypervisor.BlockAddress{Driver: contract.DriverBlk, Source: a.slot}
}

// PlugBlock attaches a disk while the VM runs.
func (m *machine) PlugBlock(ctx context.Context, b hypervisor.Block) (hypervisor.BlockAddress, error) {
	var p problems
	p.block(b)
	if len(p) > 0 {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug into VM %s: %w: %w", m.Spec.ID, p[0], errdefs.ErrInvalidArgument)
	}
	var addr pciAddress
	err := m.withPath(b, func(path string) (err error) {
		addr, err = m.plug(ctx, diskName(b.ID), "vm.add-disk", diskConfig(b, path))
		return err
	})
	if err != nil {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug block device %s into VM %s: %w", b.ID, m.Spec.ID, m.OrDead(err))
	}
	return blockAddress(addr), nil
}

// withPath calls fn with a path under which the VMM can open a disk's file. The API takes no
// descriptors of disks: the path is that of ours in /proc, which leads to the very file. A VMM in a jail
// does not see it, and Landlock forbids the way through another process: there the file is shown to the
// VMM, or linked, as long as fn runs.
func (m *machine) withPath(b hypervisor.Block, fn func(path string) error) error {
	link := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.File.Fd())
	switch {
	case m.par.placer != nil:
		return m.withPlace(link, b, fn)
	case m.par.Landlock:
		return withLink(m.par.Staging, link, b, fn)
	}
	return fn(link)
}

// withPlace makes the file visible to a VMM in a jail. A file without a name gets one in staging for the time of the
// call, outside the jail.
func (m *machine) withPlace(link string, b hypervisor.Block, fn func(path string) error) (err error) {
	file := b.File
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return err
	}
	show := func() error {
		path, err := m.par.placer.Place(file, b.ID, b.ReadOnly)
		if err != nil {
			return err
		}
		return errors.Join(fn(path), m.par.placer.Displace(b.ID))
	}
	if st.Nlink > 0 {
		return show()
	}
	if err := makeStaging(m.par.Staging); err != nil {
		return err
	}
	return withLink(m.par.Staging, link, b, func(path string) (err error) {
		if file, err = os.Open(path); err != nil {
			return err
		}
		defer file.Close()
		return show()
	})
}

// plug makes one of the calls that attach a device.
func (m *machine) plug(ctx context.Context, name, call string, config any, files ...*os.File) (addr pciAddress,
	err error,
) {
	var u undo.Stack
	defer u.RunOnError(&err)
	if err := m.claim(ctx, name); err != nil {
		return addr, err
	}
	u.Push("forget device "+name, func(context.Context) error { m.forget(name); return nil })
	var info clhapi.PciDeviceInfo
	err = m.api.put(ctx, call, config, &info, files...)
	if refused(err) && !m.mayHave(ctx, name) {
		return addr, err
	}
	u.Push("remove device "+name, func(ctx context.Context) error { return m.ask(ctx, name) })
	if err != nil { // it may be there
		return addr, err
	}
	if addr, err = parseBDF(info.Bdf); err != nil {
		return addr, err
	}
	m.mu.Lock()
	m.devices[name] = addr
	m.mu.Unlock()
	return addr, nil
}

// claim reserves a name and a place for a device. A device that the guest released after an unplug had timed out still
// holds its own, so before claim refuses, it asks the VMM which devices are left.
func (m *machine) claim(ctx context.Context, name string) error {
	err := m.tryClaim(name)
	if err == nil || m.dropReleased(ctx) != nil {
		return err
	}
	return m.tryClaim(name)
}

func (m *machine) tryClaim(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.devices[name]; ok {
		return fmt.Errorf("its id is plugged in already: %w", errdefs.ErrFailedPrecondition)
	}
	if len(m.devices) >= maxDevices {
		return fmt.Errorf("all %d places on the PCI bus are taken: %w", maxDevices, errdefs.ErrFailedPrecondition)
	}
	m.devices[name] = pciAddress{}
	return nil
}

// dropReleased forgets the devices that the VMM has no more. One that is being plugged has no address
// yet and stays.
func (m *machine) dropReleased(ctx context.Context) error {
	m.mu.Lock()
	known := make(map[string]pciAddress, len(m.devices))
	for name, addr := range m.devices {
		if addr.slot != "" {
			known[name] = addr
		}
	}
	m.mu.Unlock()
	var info clhapi.VmInfo
	if err := m.api.get(ctx, "vm.info", &info); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, addr := range known {
		if !has(info, name) && m.devices[name] == addr {
			delete(m.devices, name)
		}
	}
	return nil
}

// mayHave reports whether the VMM has a device or does not answer. It is called after each refusal: the refusal's
// status is not enough, since releases before 54 answer nearly every error with 500.
func (m *machine) mayHave(ctx context.Context, name string) bool {
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), vmm.QuitTimeout)
	defer cancel()
	var info clhapi.VmInfo
	if err := m.api.get(actx, "vm.info", &info); err != nil {
		return !m.Dead()
	}
	return has(info, name)
}

func (m *machine) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.devices, name)
}

// ask asks the guest to let go of a device; one that is not there is fine.
func (m *machine) ask(ctx context.Context, name string) error {
	err := m.api.put(ctx, "vm.remove-device", clhapi.VmRemoveDevice{Id: name}, nil)
	if m.Dead() || refused(err) && !m.mayHave(ctx, name) {
		return nil
	}
	return err
}

// unplug hot-unplugs a device and waits until the guest has released it.
func (m *machine) unplug(ctx context.Context, name string) error {
	m.mu.Lock()
	addr, ok := m.devices[name]
	m.mu.Unlock()
	if !ok || addr.slot == "" {
		return errdefs.ErrNotFound
	}
	gone := m.removed.Expect(addr.bdf)
	err := m.api.put(ctx, "vm.remove-device", clhapi.VmRemoveDevice{Id: name}, nil)
	switch {
	case refused(err) && !m.mayHave(ctx, name): // an earlier try was answered late
	case err != nil:
		return err
	default:
		if err := m.awaitRemoval(ctx, name, gone); err != nil {
			return err
		}
	}
	m.removed.Gone(addr.bdf)
	m.forget(name)
	return nil
}

// awaitRemoval waits for the event. Events may get lost, so in the end the VMM is asked.
func (m *machine) awaitRemoval(ctx context.Context, name string, gone <-chan struct{}) error {
	select {
	case <-gone:
		return nil
	case <-m.Proc.Done():
		return vmm.ErrEnded
	case <-ctx.Done():
	}
	if !m.mayHave(ctx, name) {
		return nil
	}
	return fmt.Errorf("the guest has not let go of it: %w", context.Cause(ctx))
}

// UnplugBlock hot-unplugs a disk that the guest has stopped using. The guest has to confirm that; ctx bounds the wait.
func (m *machine) UnplugBlock(ctx context.Context, id string) error {
	if err := m.unplug(ctx, diskName(id)); err != nil {
		return fmt.Errorf("unplug block device %s from VM %s: %w", id, m.Spec.ID, m.OrDead(err))
	}
	return nil
}

// PlugNIC attaches an interface while the VM runs and returns its PCI path.
func (m *machine) PlugNIC(ctx context.Context, n hypervisor.NIC) (string, error) {
	var p problems
	p.nic(n, m.Spec.CPU.Count)
	if len(p) > 0 {
		return "", fmt.Errorf("plug into VM %s: %w: %w", m.Spec.ID, p[0], errdefs.ErrInvalidArgument)
	}
	addr, err := m.plug(ctx, nicName(n.ID), "vm.add-net", netConfig(n), n.Tap...)
	if err != nil {
		return "", fmt.Errorf("plug network interface %s into VM %s: %w", n.ID, m.Spec.ID, m.OrDead(err))
	}
	return addr.slot, nil
}

// UnplugNIC hot-unplugs an interface. The guest has to confirm that; ctx bounds the wait.
func (m *machine) UnplugNIC(ctx context.Context, id string) error {
	if err := m.unplug(ctx, nicName(id)); err != nil {
		return fmt.Errorf("unplug network interface %s from VM %s: %w", id, m.Spec.ID, m.OrDead(err))
	}
	return nil
}
