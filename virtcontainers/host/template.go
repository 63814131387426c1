// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/hypervisor/qemu/template"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/network/netns"
	plan "github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
	"github.com/coco-shim/coco/virtcontainers/users"
)

// Bounds of a node's templates. One is of 90 to 150 MB, in memory.
const (
	maxTemplates      = 8
	maxTemplateBytes  = 2 << 30
	maxTemplateAge    = 24 * time.Hour // for which siblings share the layout of their kernel's memory
	templateProcesses = 256            // threads of the VMM, as for a pod
)

// Templates is where a configuration's templates are.
func Templates(c configs.Config) template.Store {
	return template.Store{
		Dir: filepath.Join(c.Runtime.StateDir, "templates"), MaxCount: maxTemplates, MaxBytes: maxTemplateBytes,
		MaxAge: maxTemplateAge,
	}
}

// MakeTemplate makes the template for pods of the configuration's default size, unless there is one that can be used:
// then made is false. It boots a VM as pods have it, with a user id and a network namespace of its own, and saves it.
// exe is as for New. On error nothing is left.
func MakeTemplate(ctx context.Context, c configs.Config, exe string, log *slog.Logger) (
	key string, made bool, err error,
) {
	if c.Hypervisor.Type != "qemu" {
		return "", false, fmt.Errorf("templates are made with QEMU, and hypervisor.type is %q: %w", c.Hypervisor.Type,
			errdefs.ErrNotImplemented)
	}
	spec, err := templateSpec(c)
	if err != nil {
		return "", false, err
	}
	defer func() { err = errors.Join(err, bootfiles.Close(spec.Boot)) }()
	d := qemuDriver(c, log)
	key, summary, err := d.Kind(ctx, spec)
	if err != nil {
		return "", false, fmt.Errorf("pods of this configuration cannot start from a template: %w", err)
	}
	driver := vmm.NewDriver(qemu.Saver{Driver: d}, forker{exe, needs(c.Hypervisor)}.fork)
	made, err = Templates(c).Make(ctx, key, summary, func(ctx context.Context, f *os.File) error {
		return save(ctx, c, driver, spec, f)
	})
	return key, made, err
}

// templateSpec is the VM of a pod without limits.
func templateSpec(c configs.Config) (hypervisor.VMSpec, error) {
	if err := c.CheckFiles(); err != nil {
		return hypervisor.VMSpec{}, err
	}
	files, err := c.Hypervisor.Boot()
	if err != nil {
		return hypervisor.VMSpec{}, err
	}
	m, err := machine()
	if err != nil {
		return hypervisor.VMSpec{}, err
	}
	boot, err := bootfiles.Open(files)
	if err != nil {
		return hypervisor.VMSpec{}, err
	}
	p, err := plan.For(plan.Input{ID: "template", Config: c, Machine: m, Boot: boot, ReadFile: configs.ReadInitdata})
	if err != nil {
		return hypervisor.VMSpec{}, errors.Join(err, bootfiles.Close(boot))
	}
	return p.VM, nil
}

// asides is the pattern of the directories in which VMs are booted to be saved.
const asides = ".template-*"

// sweep removes what a maker left that was killed. The caller has the store's lock, so there is no other one.
func sweep(state string) error {
	left, err := filepath.Glob(filepath.Join(state, asides))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range left {
		errs = append(errs, netns.Delete(filepath.Join(dir, netnsName)), users.FreeAll(state, dir), os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// netnsName is the namespace of a VM that is saved, in its directory.
const netnsName = "netns"

// save boots a VM and writes its state.
func save(ctx context.Context, c configs.Config, d hypervisor.Driver, spec hypervisor.VMSpec, f *os.File) (err error) {
	if err := sweep(c.Runtime.StateDir); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.Runtime.StateDir, asides)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	place := hypervisor.Place{
		ID: spec.ID, NetNS: filepath.Join(dir, netnsName), Dir: dir, Processes: templateProcesses,
	}
	if err := netns.New(place.NetNS); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Delete(place.NetNS)) }()
	ids := users.Range{
		First: uint32(c.Hypervisor.FirstUser), Count: uint32(c.Hypervisor.Users), //nolint:gosec // the schema bounds both
	}
	defer func() { err = errors.Join(err, users.Free(c.Runtime.StateDir, place.User, dir)) }()
	_, err = users.Take(c.Runtime.StateDir, ids, dir, func(id uint32) error { place.User = id; return nil })
	if err != nil {
		return err
	}
	pending, err := d.Begin(ctx, place)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pending.Abort(context.WithoutCancel(ctx))) }()
	ctx, cancel := context.WithTimeoutCause(ctx, c.Hypervisor.BootTimeout,
		fmt.Errorf("hypervisor.boot_timeout of %v is over", c.Hypervisor.BootTimeout))
	defer cancel()
	vm, err := pending.Launch(ctx, spec)
	if err != nil {
		return err
	}
	saver, ok := vm.(hypervisor.Saver)
	if !ok {
		return fmt.Errorf("driver %s cannot save a VM: %w", d.Name(), errdefs.ErrNotImplemented)
	}
	return errors.Join(saver.Save(ctx, f), vm.Stop(context.WithoutCancel(ctx)))
}
