// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/hypervisor/qemu/template"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/network/netns"
	plan "github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/users"
)

// Bounds of a node's templates. One is of 90 to 150 MB, in memory.
const (
	maxTemplates      = 8
	maxTemplateBytes  = 2 << 30
	maxTemplateAge    = contract.TemplateAge * time.Second // for which siblings share the layout of their kernel's memory
	minTemplateFree   = 320 << 20                          // of the tmpfs, before one is made
	templateRetry     = 10 * time.Minute
	templateProcesses = 256 // threads of the VMM, as for a pod
)

// ErrTemplateBusy is the error of MakeTemplate when another process makes a template.
var ErrTemplateBusy = template.ErrBusy

// Templates is where a configuration's templates are.
func Templates(c configs.Config) template.Store {
	return template.Store{
		Dir: filepath.Join(c.Runtime.StateDir, "templates"), MaxCount: maxTemplates, MaxBytes: maxTemplateBytes,
		MaxAge: maxTemplateAge, MinFree: minTemplateFree, Retry: templateRetry,
	}
}

// MakeTemplate makes the template for pods of the configuration's default size, unless there is one that can be used:
// then made is false. It boots a VM as pods have it, with a user id, a network namespace and a cgroup of its own, and
// saves it. exe is as for New. On error nothing is left.
func MakeTemplate(ctx context.Context, c configs.Config, exe string, log *slog.Logger) (
	key string, made bool, err error,
) {
	m, err := machine()
	if err != nil {
		return "", false, err
	}
	shape, err := plan.ShapeOf(c.Hypervisor, m, nil)
	if err != nil {
		return "", false, err
	}
	return makeTemplate(ctx, order{Config: c, Shape: shape}, exe, log)
}

// order is what a template is to be made of.
type order struct {
	Config configs.Config
	Shape  plan.Shape
	Key    string // of the pod that lacks it; empty: made because of a command
}

func makeTemplate(ctx context.Context, o order, exe string, log *slog.Logger) (key string, made bool, err error) {
	c := o.Config
	if c.Hypervisor.Type != "qemu" {
		return "", false, fmt.Errorf("templates are made with QEMU, and hypervisor.type is %q: %w", c.Hypervisor.Type,
			errdefs.ErrNotImplemented)
	}
	spec, err := o.spec()
	if err != nil {
		return "", false, err
	}
	defer func() { err = errors.Join(err, bootfiles.Close(spec.Boot)) }()
	d := qemu.New(qemuOptions(c, log))
	key, summary, err := d.Kind(ctx, spec)
	if err != nil {
		return "", false, fmt.Errorf("pods of this configuration cannot start from a template: %w", err)
	}
	if o.Key == "" {
		o.Key = key
	}
	driver := vmm.NewDriver(qemu.Saver{Driver: d}, forker{exe, needs(c.Hypervisor)}.fork)
	made, err = Templates(c).Make(ctx, o.Key, summary, func(ctx context.Context, f *os.File) error {
		if o.Key != key { // a file of the guest or QEMU has changed since
			return fmt.Errorf("it would be of another VM, %.12s: %w", key, errdefs.ErrFailedPrecondition)
		}
		if err := EnoughMemory(spec.MemoryMiB); err != nil {
			return err
		}
		return saving{c, driver}.save(ctx, spec, f)
	})
	return key, made, err
}

// spec is the VM that is saved.
func (o order) spec() (hypervisor.VMSpec, error) {
	if err := o.Config.CheckFiles(); err != nil {
		return hypervisor.VMSpec{}, err
	}
	files, err := o.Config.Hypervisor.Boot()
	if err != nil {
		return hypervisor.VMSpec{}, err
	}
	boot, err := bootfiles.Open(files)
	if err != nil {
		return hypervisor.VMSpec{}, err
	}
	return plan.VM("template", o.Config.Hypervisor, o.Shape, boot), nil
}

// asides is the pattern of the directories in which VMs are booted to be saved.
const asides = ".template-*"

// netnsName is the namespace of a VM that is saved, in its directory.
const netnsName = "netns"

// sweep removes what a maker left that was killed. The caller has the store's lock, so there is no other one.
func sweep(ctx context.Context, state string) error {
	left, err := filepath.Glob(filepath.Join(state, asides))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range left {
		errs = append(errs, netns.Delete(filepath.Join(dir, netnsName)), users.FreeAll(state, dir), os.RemoveAll(dir))
	}
	g, err := groupOf(state)
	if err == nil {
		err = g.remove(ctx)
	}
	return errors.Join(append(errs, err)...)
}

// saving is how a VM is booted to be saved.
type saving struct {
	configs.Config
	driver hypervisor.Driver
}

// save boots a VM and writes its state.
func (s saving) save(ctx context.Context, spec hypervisor.VMSpec, f *os.File) (err error) {
	if err := sweep(ctx, s.Runtime.StateDir); err != nil {
		return err
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run(ctx)) }()
	pending, err := s.place(ctx, spec.ID, &u)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.Hypervisor.BootTimeout,
		fmt.Errorf("hypervisor.boot_timeout of %v is over", s.Hypervisor.BootTimeout))
	defer cancel()
	vm, err := pending.Launch(ctx, spec)
	if err != nil {
		return err
	}
	saver, ok := vm.(hypervisor.Saver)
	if !ok {
		return fmt.Errorf("driver %s cannot save a VM: %w", s.driver.Name(), errdefs.ErrNotImplemented)
	}
	return errors.Join(saver.Save(ctx, f), vm.Stop(context.WithoutCancel(ctx)))
}

// place makes the place in which a VM is booted: a directory, a network namespace, a user id and a cgroup.
func (s saving) place(ctx context.Context, id string, u *undo.Stack) (hypervisor.Pending, error) {
	state := s.Runtime.StateDir
	dir, err := os.MkdirTemp(state, asides)
	if err != nil {
		return nil, err
	}
	u.Push("remove the directory", func(context.Context) error { return os.RemoveAll(dir) })
	p := hypervisor.Place{ID: id, NetNS: filepath.Join(dir, netnsName), Dir: dir, Processes: templateProcesses}
	if err := netns.New(p.NetNS); err != nil {
		return nil, err
	}
	u.Push("delete the network namespace", func(context.Context) error { return netns.Delete(p.NetNS) })
	ids := users.Range{
		First: uint32(s.Hypervisor.FirstUser), //nolint:gosec // the schema bounds both
		Count: uint32(s.Hypervisor.Users),     //nolint:gosec // likewise
	}
	u.Push("give the user id back", func(context.Context) error { return users.Free(state, p.User, dir) })
	if _, err := users.Take(state, ids, dir, func(id uint32) error { p.User = id; return nil }); err != nil {
		return nil, err
	}
	pending, err := s.driver.Begin(ctx, p)
	if err != nil {
		return nil, err
	}
	u.Push("end the VMM's process", pending.Abort)
	g, err := groupOf(state)
	if err != nil {
		return nil, err
	}
	u.Push("remove the cgroup", func(ctx context.Context) error {
		return errors.Join(pending.Abort(ctx), g.remove(ctx)) // a group with a process in it stays
	})
	room := needs(s.Hypervisor)
	return pending, g.enter(pending.PID(), cgroups.Devices{Chars: room.AllDevices(), Disks: room.Disks})
}

// group is the cgroup of a VM that is saved: it neither counts against a pod nor ends with one. There is one maker for
// a state directory, so the group's name is fixed and a killed maker's group is found.
type group struct{ dirs, leaves []string }

func groupOf(state string) (group, error) {
	hs, err := cgroups.Hierarchies()
	if err != nil {
		return group{}, err
	}
	sum := sha256.Sum256([]byte(state))
	dirs, leaves, err := cgroups.Plan(hs, fmt.Sprintf("/coco-template-%x", sum[:6]), "")
	return group{dirs, leaves}, err
}

// enter puts a process into the group.
func (g group) enter(pid int, d cgroups.Devices) error {
	if err := cgroups.Apply(g.dirs, g.leaves, pid, func(string) error { return nil }); err != nil {
		return err
	}
	err := cgroups.LimitDevices(g.leaves, d)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil // as for a pod, whose log has a warning
	}
	return errors.Join(err, cgroups.LimitProcesses(g.leaves, templateProcesses))
}

func (g group) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undo.StepTimeout)
	defer cancel()
	return cgroups.Remove(ctx, g.dirs)
}
