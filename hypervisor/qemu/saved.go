// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

// A VM that starts from a template. A template is the state of a guest that has booted with the same QEMU, kernel,
// command line and devices, but without disks, network interfaces and a peer on the agent's channel. It is saved once;
// a VM that starts from it reads its own copy of all memory, gets its disks and interfaces by hot-plug while its
// processors still stand, and runs on from where the template stood.
//
// The guests of one template start with the same state of the random number generator. A device
// (vmgenid) tells each kernel of a new identity, and the pod gives the guest entropy of its own before it asks for
// anything else (hypervisor.Cloned).

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/template"
	"github.com/coco-shim/coco/internal/cpuid"
	"github.com/coco-shim/coco/internal/initdata"
)

// templateID is the name of every template's VM.
const templateID = "template"

// kind is all that the state of a template depends on.
type kind struct {
	Format   int // of what is saved
	QEMU     file
	Argv     []string
	Kernel   file
	Initrd   file
	Firmware file
	CPU      []uint32 // the host's processor
	Release  string   // the host's kernel, which has the rest of the state under KVM
}

// file identifies a file on this host while nobody writes to it.
type file struct {
	Device, Inode     uint64
	Size              int64
	Modified, Changed int64 // nanoseconds
}

func identify(f *os.File) (file, error) {
	if f == nil {
		return file{}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return file{}, fmt.Errorf("identify %s: %w", f.Name(), err)
	}
	return fileOf(st), nil
}

func fileOf(st unix.Stat_t) file {
	return file{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// bare is the VM without what a pod adds to it. Its id is that of the pod. It has one port more: the interface, which
// a VM that boots has from the beginning, takes one, and as many are to be left for interfaces that come later.
func bare(spec hypervisor.VMSpec) hypervisor.VMSpec {
	spec.Blocks, spec.NICs = nil, nil
	if spec.HotplugPorts > 0 {
		spec.HotplugPorts = min(spec.HotplugPorts+1, maxPorts)
	}
	spec.Boot.Cmdline += " " + contract.ParamTemplate
	return spec
}

// Kind returns the key of the templates that a VM can start from, and a summary for people. The error says why it
// cannot start from any.
func (d *Driver) Kind(ctx context.Context, spec hypervisor.VMSpec) (key, summary string, err error) {
	if spec, err = d.resolve(ctx, spec); err != nil {
		return "", "", err
	}
	if err := clonable(spec); err != nil {
		return "", "", err
	}
	return d.kind(spec)
}

func (d *Driver) kind(spec hypervisor.VMSpec) (key, summary string, err error) {
	named := bare(spec)
	named.ID = templateID
	k := kind{
		Format: 1,
		Argv: Build(named, Params{
			Binary: d.opts.Path, TCGCacheMiB: d.opts.TCGCacheMiB, NoSandbox: d.opts.NoSandbox, Cloneable: true,
		}).Argv,
		CPU: processor(),
	}
	var st unix.Stat_t
	if err := unix.Stat(d.opts.Path, &st); err != nil {
		return "", "", fmt.Errorf("identify %s: %w", d.opts.Path, err)
	}
	k.QEMU = fileOf(st)
	for _, f := range []struct {
		from *os.File
		to   *file
	}{{spec.Boot.Kernel, &k.Kernel}, {spec.Boot.Initrd, &k.Initrd}, {spec.Boot.Firmware, &k.Firmware}} {
		if *f.to, err = identify(f.from); err != nil {
			return "", "", err
		}
	}
	if spec.Accel == hypervisor.AccelKVM {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return "", "", fmt.Errorf("release of the host's kernel: %w", err)
		}
		k.Release = unix.ByteSliceToString(u.Release[:])
	}
	key, err = template.Key(k)
	return key, fmt.Sprintf("%d CPUs, %d MiB, %s, %s, %s", spec.CPU.Count, spec.MemoryMiB, spec.Accel,
		spec.Boot.Kernel.Name(), d.opts.Path), err
}

// processor is what the host's processor can do. The number of the processor that answers is left out.
func processor() []uint32 {
	id, features, more := cpuid.Query(0, 0), cpuid.Query(1, 0), cpuid.Query(7, 0)
	far := cpuid.Query(0x80000001, 0)
	return []uint32{
		id.EBX, id.ECX, id.EDX, features.EAX, features.ECX, features.EDX, more.EBX, more.ECX, more.EDX, far.ECX,
		far.EDX,
	}
}

// clonable refuses a VM that cannot start from a template.
func clonable(spec hypervisor.VMSpec) error {
	ports := len(spec.NICs)
	if spec.BlockBus == hypervisor.BlockBlk {
		ports += len(spec.Blocks)
	}
	switch {
	case spec.Measured():
		return fmt.Errorf("memory of platform %q cannot be copied: %w", spec.TEE, errdefs.ErrFailedPrecondition)
	case spec.HostFiles != nil:
		return fmt.Errorf("it shows live files of the host, which need shared memory: %w", errdefs.ErrFailedPrecondition)
	case ports > spec.HotplugPorts:
		return fmt.Errorf("it needs %d PCIe ports and hypervisor.hotplug_ports is %d: %w", ports, spec.HotplugPorts,
			errdefs.ErrFailedPrecondition)
	}
	for _, b := range spec.Blocks {
		if b.ID == initdata.DiskID {
			return fmt.Errorf("the guest reads its initdata when it boots: %w", errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// template opens the template of a resolved spec. nil: the VM boots, and the log says why where one was to be used;
// missing is the key of a template that could be made.
func (d *Driver) template(spec hypervisor.VMSpec) (t *template.Template, missing string) {
	if d.opts.Templates == nil {
		return nil, ""
	}
	err := clonable(spec)
	var key string
	if err == nil {
		key, _, err = d.kind(spec)
	}
	if err == nil {
		t, err = d.opts.Templates.Open(key)
	}
	if err != nil {
		d.opts.Log.Info("VM boots, not from a template", "vm", spec.ID, "reason", err)
		return nil, key
	}
	return t, ""
}

// restore loads a template into a waiting VMM, as the VM of spec: its processors run when it returns. The template's
// digest is verified while the VMM reads it. A template with a fault is removed, so that the next VM boots.
func (m *machine) restore(ctx context.Context, t *template.Template, s template.Store, spec hypervisor.VMSpec) error {
	begun := time.Now()
	verified := make(chan error, 1)
	go func() { verified <- t.Verify(ctx) }()
	err := m.load(ctx, t.State)
	if v := <-verified; v != nil {
		err = v
	}
	if err != nil {
		err = fmt.Errorf("start VM %s from a template: %w", spec.ID, err)
		if ctx.Err() == nil {
			err = errors.Join(err, s.Remove(t.Key))
		}
		return err
	}
	for _, b := range spec.Blocks {
		if _, err := m.PlugBlock(ctx, b); err != nil {
			return err
		}
	}
	for _, n := range spec.NICs {
		if _, err := m.PlugNIC(ctx, n); err != nil {
			return err
		}
	}
	m.cloned = true
	if err := m.qmp.Call(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("start VM %s from a template: %w", spec.ID, m.OrDead(err))
	}
	m.Enter(hypervisor.PhaseAgent)
	m.Log.Info("VM starts from a template", "vm", spec.ID, "template", t.Key, "took", time.Since(begun))
	return nil
}

// load has the VMM read a state.
func (m *machine) load(ctx context.Context, state *os.File) error {
	return m.migrate(ctx, "migrate-incoming", state)
}

// Save stops the VM and writes its state. The VM is of no use then but to be stopped.
func (m *machine) Save(ctx context.Context, state *os.File) error {
	select {
	case <-m.agentUp:
	case <-m.Done():
		return m.Err()
	case <-ctx.Done():
		return fmt.Errorf("the guest is not up: %w: %s", context.Cause(ctx), strings.Join(m.Console(), "\n"))
	}
	if err := m.qmp.Call(ctx, "stop", nil, nil); err != nil {
		return m.OrDead(err)
	}
	// It is written as fast as it goes, since nothing runs meanwhile.
	params := map[string]any{"max-bandwidth": int64(1) << 40}
	if err := m.qmp.Call(ctx, "migrate-set-parameters", params, nil); err != nil {
		return m.OrDead(err)
	}
	return m.migrate(ctx, "migrate", state)
}

// migrate has the VMM write or read a state, and waits until it has.
func (m *machine) migrate(ctx context.Context, command string, state *os.File) error {
	const name = "template"
	events := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	if err := m.qmp.Call(ctx, "migrate-set-capabilities", events, nil); err != nil {
		return m.OrDead(err)
	}
	if err := m.qmp.Call(ctx, "getfd", map[string]any{"fdname": name}, nil, state); err != nil {
		return m.OrDead(err)
	}
	if err := m.qmp.Call(ctx, command, map[string]any{"uri": "fd:" + name}, nil); err != nil {
		return m.OrDead(err)
	}
	for {
		select {
		case status := <-m.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return m.whyFailed(ctx)
			}
		case <-m.Done(): // a VMM that cannot read its state ends
			return m.Err()
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", command, context.Cause(ctx))
		}
	}
}

func (m *machine) whyFailed(ctx context.Context) error {
	var r struct {
		Error string `json:"error-desc"`
	}
	if err := m.qmp.Call(ctx, "query-migrate", nil, &r); err != nil {
		return m.OrDead(err)
	}
	return fmt.Errorf("the VMM says: %q", r.Error)
}

// Cloned reports whether the VM started from a template.
func (m *machine) Cloned() bool { return m.cloned }

// Saver is a kind of driver whose VMs boot as templates do, to be saved: without disks, interfaces and an agent's
// channel.
type Saver struct{ *Driver }

// Launch boots a VM that has Save.
func (s Saver) Launch(ctx context.Context, spec hypervisor.VMSpec, proc hypervisor.Process, _ string) (
	hypervisor.VM, error,
) {
	spec, err := s.resolve(ctx, spec)
	if err == nil {
		err = clonable(spec)
	}
	if err != nil {
		return nil, fmt.Errorf("boot a template: %w", err)
	}
	return s.launch(ctx, bare(spec), proc, Params{Cloneable: true, Unconnected: true})
}
