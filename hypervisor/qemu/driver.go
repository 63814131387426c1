// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package qemu runs virtual machines with QEMU 7.2 or later.
//
// Launch turns a waiting process into QEMU. QEMU gets everything that it needs as open
// descriptors: kernel, initramfs and firmware are those that were measured, taps and disks are
// those that the caller opened, and control, console and agent channel are socket pairs. So
// no name in the file system can be mistaken, attacked or left behind.
//
// A VM lives as package hypervisor/vmm says, which is the part of the life that all drivers share; this package has
// what is QEMU's own. Events of the control socket move the VM into its next phase.
//
// Layers, networks, the measurement and the agent's protocol are left to other packages.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/template"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/cpuid"
	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/kvm"
)

// Options configure a driver.
type Options struct {
	// Path is QEMU's binary, absolute.
	Path string
	// TCGCacheMiB bounds the cache of translated code; 0: DefaultTCGCacheMiB.
	TCGCacheMiB int
	// NoSandbox turns QEMU's system call filter off, for builds that have none.
	NoSandbox bool
	// Precheck refuses a spec before launch for reasons that need more knowledge than the driver
	// has, such as the contents of firmware. May be nil.
	Precheck func(hypervisor.VMSpec) error
	// Templates are what VMs start from where one fits. nil: all VMs boot.
	Templates *template.Store
	// Missing is told the key of a template that a VM could have started from, and the VM, which boots. May be nil.
	Missing func(key string, spec hypervisor.VMSpec)
	// Log receives messages about VMs. nil: nothing is logged.
	Log *slog.Logger
}

// Driver launches VMs in processes that wait.
type Driver struct {
	opts      Options
	kvmUsable func() error // replaced in tests
	inspect   func(ctx context.Context, path string) (Info, error)
}

var _ vmm.Kind = (*Driver)(nil)

// New makes a driver.
func New(opts Options) *Driver {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{opts: opts, kvmUsable: func() error { return kvm.Usable("/") }, inspect: Inspect}
}

// Name is "qemu".
func (d *Driver) Name() string { return "qemu" }

// Launch turns proc into a VM. The directory is not used: QEMU gets descriptors.
func (d *Driver) Launch(ctx context.Context, spec hypervisor.VMSpec, proc hypervisor.Process,
	_ string,
) (hypervisor.VM, error) {
	spec, err := d.resolve(ctx, spec)
	if err != nil {
		return nil, err
	}
	t, missing := d.template(spec)
	if t == nil {
		m, err := d.launch(ctx, spec, proc, Params{})
		if err != nil {
			return nil, err
		}
		if missing != "" && d.opts.Missing != nil {
			d.opts.Missing(missing, spec)
		}
		return m, nil
	}
	defer t.Close() // only read
	m, err := d.launch(ctx, bare(spec), proc, Params{Cloneable: true, Incoming: true})
	if err != nil {
		return nil, err
	}
	if err := m.restore(ctx, t, *d.opts.Templates, spec); err != nil {
		return nil, errors.Join(err, m.Stop(context.WithoutCancel(ctx)))
	}
	return m, nil
}

// launch starts the VMM, with the parameters that are given and the driver's.
func (d *Driver) launch(ctx context.Context, spec hypervisor.VMSpec, proc hypervisor.Process, par Params) (
	*machine, error,
) {
	ends, err := openEnds()
	if err != nil {
		return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
	}
	defer ends.closePeers()
	par.Binary, par.TCGCacheMiB, par.NoSandbox = d.opts.Path, d.opts.TCGCacheMiB, d.opts.NoSandbox
	par.Agent, par.Control, par.Console = ends.peers[0], ends.peers[1], ends.peers[2]
	if spec.TEE == hypervisor.TEESNP {
		r := cpuid.Query(0x8000001f, 0) // AMD APM 3: EBX[5:0] C-bit, [11:6] reduction
		par.CBitPos, par.ReducedPhysBits = int(r.EBX&0x3f), int(r.EBX>>6&0x3f)
	}
	cmd := Build(spec, par)
	if err := proc.Exec(ctx, cmd.Argv, environment(), cmd.Files); err != nil {
		ends.closeOurs()
		return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
	}
	ends.closePeers() // from now on the end of the VMM ends our side
	m := newMachine(spec, proc, ends, d.opts.Log)
	if err := m.start(ctx); err != nil {
		return nil, m.Abandon(err)
	}
	m.Watch()
	return m, nil
}

// resolve validates the spec and decides its open choices.
func (d *Driver) resolve(ctx context.Context, spec hypervisor.VMSpec) (hypervisor.VMSpec, error) {
	if err := Validate(spec); err != nil {
		return spec, err
	}
	if d.opts.Precheck != nil {
		if err := d.opts.Precheck(spec); err != nil {
			return spec, fmt.Errorf("VM %s cannot be launched: %w", spec.ID, err)
		}
	}
	if err := d.capable(ctx, spec.TEE); err != nil {
		return spec, fmt.Errorf("VM %s cannot be launched: %w: %w", spec.ID, err, errdefs.ErrFailedPrecondition)
	}
	if spec.Accel == hypervisor.AccelTCG {
		return spec, nil
	}
	err := d.kvmUsable()
	switch {
	case err == nil:
		spec.Accel = hypervisor.AccelKVM
	case spec.Accel == hypervisor.AccelKVM || spec.TEE != hypervisor.TEENone:
		return spec, fmt.Errorf("VM %s cannot be launched: it needs KVM: %w", spec.ID, err)
	default:
		d.opts.Log.Info("VM runs under TCG, slowly", "vm", spec.ID, "reason", err)
		spec.Accel = hypervisor.AccelTCG
	}
	return spec, nil
}

// teeObjects are the objects that stand for TEEs, and the QEMU that brought them.
var teeObjects = map[hypervisor.TEE]struct{ name, since string }{
	hypervisor.TEESNP: {"sev-snp-guest", "9.1"},
	hypervisor.TEETDX: {"tdx-guest", "10.1"},
}

// capable asks the binary whether it has a TEE at all: one that is too old or was built without would say so in
// words that help nobody, after everything else was set up.
func (d *Driver) capable(ctx context.Context, tee hypervisor.TEE) error {
	object, ok := teeObjects[tee]
	if !ok {
		return nil
	}
	info, err := d.inspect(ctx, d.opts.Path)
	if err != nil || slices.Contains(info.Objects, object.name) {
		return err
	}
	return fmt.Errorf("%s, QEMU %s, has no object %s: platform %s needs QEMU %s or later, built with it",
		d.opts.Path, info.Version, object.name, tee, object.since)
}

// environment is QEMU's whole environment. No variable of this process is passed on.
func environment() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C"}
}

// endpoints are the socket pairs to a VMM: agent, control, console.
type endpoints struct {
	ours  [3]*net.UnixConn
	peers [3]*os.File
}

func openEnds() (*endpoints, error) {
	var e endpoints
	for i, name := range []string{"agent channel", "control", "console"} {
		var err error
		if e.ours[i], e.peers[i], err = fdpass.Pair(name, unix.SOCK_STREAM); err != nil {
			e.closePeers()
			e.closeOurs()
			return nil, err
		}
	}
	return &e, nil
}

func (e *endpoints) closePeers() {
	for i, f := range e.peers {
		if f != nil {
			_ = f.Close() // nothing was written to it
			e.peers[i] = nil
		}
	}
}

func (e *endpoints) closeOurs() {
	for _, c := range e.ours {
		if c != nil {
			_ = c.Close() // likewise
		}
	}
}
