// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package host chooses the hypervisor, the network and the layer cache that a
// configuration asks for. It is the one place where package virtcontainers meets the real machine.
package host

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/hypervisor/swtpm"
	"github.com/coco-shim/coco/hypervisor/virtiofsd"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/network/localhost"
	"github.com/coco-shim/coco/network/nameserver"
	plan "github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

// New makes the Host that a configuration describes. exe is the program that is run as the launcher,
// with the one argument launch.Arg; the program coco beside it makes templates in the background. Empty: this one is
// the launcher, and no template is made.
func New(c configs.Config, exe string, log *slog.Logger) (boot.Host, error) {
	room := needs(c.Hypervisor)
	if room.Disks {
		if err := lends(c); err != nil {
			room.Capabilities = []int{unix.CAP_DAC_OVERRIDE}
			if log != nil {
				log.Warn("the VMM has the capability dac_override: files of root cannot be lent to its user", "error", err)
			}
		}
	}
	d, err := driver(c, forker{exe, room}, log)
	if err != nil {
		return boot.Host{}, err
	}
	m, err := machine()
	if err != nil {
		return boot.Host{}, err
	}
	if err := jail.LandlockLacks(jail.LandlockVersion()); err != nil && log != nil {
		log.Warn("the VMM is confined without all of Landlock", "lacks", err)
	}
	return boot.Host{
		Driver:  d,
		Devices: &cgroups.Devices{Chars: room.AllDevices(), Disks: room.Disks},
		Network: nic.NewNamespaces(c.Network),
		Layers:  layers.NewCache(c.Runtime),
		Machine: m,
		Files:   fileServer{exe, c.Runtime.Virtiofsd},
		TPM:     tpmServer{exe, c.VTPM},
		Judge:   judge{exe},
		Localhost: func(netns string) (boot.Localhost, error) {
			g, err := localhost.Open(netns)
			if err != nil {
				return nil, err
			}
			return gate{g}, nil
		},
		Names: func(netns string) (boot.Names, error) {
			a, err := nameserver.Open(netns)
			if err != nil {
				return nil, err
			}
			return a, nil
		},
	}, nil
}

// fileServer runs the virtiofsd at a path, or the one that it finds.
type fileServer struct{ exe, path string }

// Begin forks the process that becomes virtiofsd.
func (f fileServer) Begin(ctx context.Context, netns, dir string) (hypervisor.Process, error) {
	return start(ctx, launch.Options{
		Exe: f.exe, NetNS: netns,
		Jail: &jail.Options{Capabilities: virtiofsd.Capabilities, Kept: []string{dir}},
	})
}

// Serve makes it virtiofsd.
func (f fileServer) Serve(ctx context.Context, proc hypervisor.Process, dir string) (boot.Files,
	*os.File, error,
) {
	d, err := virtiofsd.Find(ctx, f.path)
	if err != nil {
		return nil, nil, err
	}
	s, socket, err := d.Serve(ctx, proc, dir)
	if err != nil {
		return nil, nil, err
	}
	return s, socket, nil
}

// tpmServer runs the swtpm of a configuration.
type tpmServer struct {
	exe  string
	conf configs.VTPM
}

// tpmProcesses is the most processes of the VMM's user that its TPM tolerates: it has one itself.
const tpmProcesses = 4096

// Begin forks the process that becomes swtpm.
func (t tpmServer) Begin(ctx context.Context, netns string, user uint32) (hypervisor.Process, error) {
	return start(ctx, launch.Options{
		Exe: t.exe, NetNS: netns,
		Jail: &jail.Options{User: user, Processes: tpmProcesses, Memory: []string{swtpm.StateDir}},
	})
}

// Serve makes it swtpm.
func (t tpmServer) Serve(ctx context.Context, proc hypervisor.Process) (*os.File, error) {
	return swtpm.Serve(ctx, proc, t.conf.Program, t.certify())
}

// certifyTime bounds the certification of a TPM, which takes some 50 ms.
const certifyTime = 30 * time.Second

// certify has the CLI beside this program certify a TPM's key by the configured CA: the shim itself has no use for
// certificates.
func (t tpmServer) certify() swtpm.Certify {
	if t.conf.CA == "" {
		return nil
	}
	return func(ctx context.Context, control *os.File) error {
		self := t.exe
		if self == "" {
			var err error
			if self, err = os.Executable(); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(ctx, certifyTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "coco"), "node", "tpm-certify", "--ca", t.conf.CA)
		cmd.ExtraFiles = []*os.File{control}
		cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", cmd.Path, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
}

// gate is package localhost's, by the pod model's words.
type gate struct{ *localhost.Gate }

func (g gate) Serve(ctx context.Context, dial func(context.Context, uint16) (net.Conn, error)) {
	g.Gate.Serve(ctx, dial)
}

func qemuOptions(c configs.Config, log *slog.Logger) qemu.Options {
	h := c.Hypervisor
	return qemu.Options{Path: h.Path, NoSandbox: !h.Seccomp, Precheck: bootfiles.Precheck(h.Type), Log: log}
}

// driver makes the driver of hypervisor.type.
func driver(c configs.Config, f forker, log *slog.Logger) (hypervisor.Driver, error) {
	h := c.Hypervisor
	switch h.Type {
	case "qemu":
		o := qemuOptions(c, log)
		if c.Runtime.Template != configs.TemplateOff {
			s := Templates(c)
			o.Templates = &s
			if f.exe != "" {
				o.Missing = newMaker(c, f.exe, log).missing
			}
		}
		return vmm.NewDriver(qemu.New(o), f.fork), nil
	case "clh":
		return vmm.NewDriver(clh.New(clh.Options{
			Path: h.Path, NoSeccomp: !h.Seccomp, Landlock: h.Landlock, Staging: filepath.Join(c.Runtime.LayerCache, "plug"),
			Precheck: bootfiles.Precheck(h.Type), Log: log,
		}), f.fork), nil
	}
	return nil, fmt.Errorf("hypervisor.type %q: %w", h.Type, errdefs.ErrNotImplemented)
}

// lends tells why the disks of layers and writable layers cannot be lent to a VMM's user; nil: they can.
func lends(c configs.Config) error {
	user := uint32(c.Hypervisor.FirstUser) //nolint:gosec // the schema bounds it
	return jail.Lends(user, c.Runtime.LayerCache, c.Runtime.ScratchDir)
}

// needs lists the paths and devices that the VMM needs besides its own files and inherited descriptors.
// Cloud Hypervisor opens its disks by name, and they belong to root: they are lent to its user.
func needs(h configs.Hypervisor) jail.Options {
	o := jail.Options{Paths: h.ExtraPaths, Disks: h.Type == configs.TypeCLH}
	if h.Accel != "tcg" {
		o.Devices = append(o.Devices, "/dev/kvm")
	}
	if h.Platform == "snp" {
		o.Devices = append(o.Devices, "/dev/sev")
	}
	if _, socket := h.QuoteService(); h.Platform == "tdx" && socket != "" {
		o.Kept = append(o.Kept, socket) // it connects for each quote
	}
	return o
}

// forker forks the process that becomes the VMM.
type forker struct {
	exe  string
	jail jail.Options // but the user and the limits
}

// fork is a vmm.Fork.
func (f forker) fork(ctx context.Context, p hypervisor.Place) (hypervisor.Process, error) {
	j := f.jail
	j.User, j.Processes = p.User, p.Processes
	if j.Disks { // and its sockets
		j.Kept = append(slices.Clone(j.Kept), p.Dir)
	}
	return start(ctx, launch.Options{Exe: f.exe, NetNS: p.NetNS, Jail: &j})
}

func start(ctx context.Context, o launch.Options) (hypervisor.Process, error) {
	p, err := launch.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func machine() (plan.Machine, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return plan.Machine{}, fmt.Errorf("size of the host's memory: %w", err)
	}
	return plan.Machine{CPUs: runtime.NumCPU(), MemoryMiB: uint64(si.Totalram) * uint64(si.Unit) >> 20}, nil
}
