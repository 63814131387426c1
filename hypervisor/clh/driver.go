// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package clh runs virtual machines with Cloud Hypervisor 51 or later, on the plain platform and, from
// version 52 on, on SEV-SNP by an IGVM file.
//
// Launch turns a waiting process into the VMM, which finds the listening socket of its API and the
// pipe for its events among its descriptors, and kernel, initramfs, IGVM file and disks as the very
// descriptors that were measured. The VM is then described and booted through the API; taps travel
// beside the requests. The guest is reached through the VMM's own vsock device, a Unix socket.
//
// CI has no Cloud Hypervisor: the tests hold the driver against package clhtest, which behaves as the
// source of releases 51, 53 and 54 says. The tests named TestReal run a real one where COCO_CLH names it.
//
// A VM lives as package hypervisor/vmm says, which is the part of the life that all drivers share; this package has
// what is Cloud Hypervisor's own.
//
// Layers, networks, the measurement and the agent's protocol are left to other packages.
package clh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/kvm"
	"github.com/coco-shim/coco/internal/undo"
)

const (
	minVersion    = 51 // disks have a format that the guest cannot change by writing to them
	minVersionSNP = 52 // SNP on KVM

	maxLanded = 8 << 20 // initdata is far smaller
)

// Options configure a driver.
type Options struct {
	// Path is the VMM's binary, absolute.
	Path string
	// NoSeccomp turns the VMM's system call filters off.
	NoSeccomp bool
	// Landlock confines the VMM to the VM's files, and for disks that are plugged later to links in
	// Staging, a directory on their file system. It needs Linux 6.2; without, the VM runs unconfined and
	// the log says so.
	Landlock bool
	Staging  string
	// Precheck refuses a spec before launch for reasons that need more knowledge than the driver
	// has, such as the contents of an IGVM file. May be nil.
	Precheck func(hypervisor.VMSpec) error
	// KVM returns an error if KVM cannot be used. nil: the host is probed.
	KVM func() error
	// Log receives messages about VMs. nil: nothing is logged.
	Log *slog.Logger
}

// Driver launches VMs in processes that wait.
type Driver struct {
	opts        Options
	landlockABI func() int // replaced in tests
}

var _ vmm.Kind = (*Driver)(nil)

// New makes a driver.
func New(opts Options) *Driver {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.KVM == nil {
		opts.KVM = func() error { return kvm.Usable("/") }
	}
	return &Driver{opts: opts, landlockABI: landlockABI}
}

// Name is "clh".
func (d *Driver) Name() string { return "clh" }

// Launch turns proc into a VM. dir must be private to it and have a short path; the VMM's sockets lie
// there until the VM has ended.
func (d *Driver) Launch(ctx context.Context, spec hypervisor.VMSpec, proc hypervisor.Process,
	dir string,
) (hypervisor.VM, error) {
	if err := d.check(spec, dir); err != nil {
		return nil, err
	}
	par := Params{
		Binary: d.opts.Path, NoSeccomp: d.opts.NoSeccomp, Dir: dir,
		Landlock: d.opts.Landlock && d.landlockUsable(spec.ID), Staging: d.opts.Staging, Plugged: d.opts.Staging,
	}
	if p, ok := proc.(hypervisor.Placer); ok && p.Places() != "" {
		par.placer, par.Plugged = p, p.Places()
	}
	ends, err := openEnds(dir)
	if err != nil {
		return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
	}
	// It makes the socket of its vsock device in dir, and opens the FIFO.
	if err := errors.Join(par.give(dir), par.give(filepath.Join(dir, consoleFIFO))); err != nil {
		ends.close()
		return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
	}
	var u undo.Stack // closes files of which the VMM has duplicates
	defer func() {
		if uerr := u.Run(ctx); uerr != nil {
			d.opts.Log.Warn("after the launch", "vm", spec.ID, "error", uerr)
		}
	}()
	if par.Landlock {
		if spec.Blocks, err = confine(spec.Blocks, par, &u); err != nil {
			ends.close()
			return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
		}
	}
	cmd, config := Build(spec, par)
	files := append([]*os.File{ends.api, ends.eventsPeer}, cmd.Files...)
	if err := proc.Exec(ctx, cmd.Argv, environment(), files); err != nil {
		ends.close()
		return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
	}
	ends.handedOver() // from now on the end of the VMM ends our side
	m := newMachine(spec, par, proc, ends, d.opts.Log)
	if err := m.start(ctx, config); err != nil {
		closeFiles(&ends.consoleHold) // nobody will open it any more
		return nil, m.Abandon(err)
	}
	m.Watch()
	return m, nil
}

// check refuses a spec that cannot be launched.
func (d *Driver) check(spec hypervisor.VMSpec, dir string) error {
	if err := Validate(spec); err != nil {
		return err
	}
	if d.opts.Precheck != nil {
		if err := d.opts.Precheck(spec); err != nil {
			return fmt.Errorf("VM %s cannot be launched: %w", spec.ID, err)
		}
	}
	if n := len(filepath.Join(dir, vsockSocket)); n > maxUnixPath {
		return fmt.Errorf("VM %s cannot be launched: the path of a socket in %s has %d bytes, at most %d are possible: set "+
			"a shorter runtime.state_dir", spec.ID, dir, n, maxUnixPath)
	}
	if err := d.opts.KVM(); err != nil {
		return fmt.Errorf("VM %s cannot be launched: Cloud Hypervisor needs KVM: %w", spec.ID, err)
	}
	return nil
}

// landlockUsable reports whether the VMM could confine itself. It needs at least version 3 of Landlock.
func (d *Driver) landlockUsable(id string) bool {
	const need = 3 // Cloud Hypervisor, vmm/src/landlock.rs
	abi := d.landlockABI()
	if abi < need {
		d.opts.Log.Warn("VMM is not confined by Landlock", "vm", id, "have", abi, "need", need, "fix",
			"Linux 6.2 or later with landlock in its lsm= list")
	}
	return abi >= need
}

// landlockABI is the kernel's version of Landlock, 0 for none.
func landlockABI() int {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// confine prepares a launch under Landlock, whose rules are about paths in file systems: it makes the directory for
// hot-plugged disks, and replaces disks in memory by copies without a name, which live as long as the VMM.
func confine(blocks []hypervisor.Block, par Params, u *undo.Stack) ([]hypervisor.Block, error) {
	if err := makeStaging(par.Staging); err != nil {
		return nil, err
	}
	blocks = slices.Clone(blocks)
	for i, b := range blocks {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", b.File.Fd()))
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(link, "/memfd:") {
			continue
		}
		st, err := b.File.Stat()
		if err != nil {
			return nil, err
		}
		if !b.ReadOnly || st.Size() > maxLanded {
			return nil, fmt.Errorf("block device %s: a disk in memory must be read-only and have at most %d bytes for "+
				"Landlock (hypervisor.landlock)", b.ID, maxLanded)
		}
		f, err := os.OpenFile(par.Dir, os.O_RDWR|unix.O_TMPFILE, 0o400)
		if err != nil {
			return nil, fmt.Errorf("block device %s: %w", b.ID, err)
		}
		u.Push("close the copy of block device "+b.ID, func(context.Context) error { return f.Close() })
		if err := f.Chmod(0o444); err != nil { // the VMM's user may read it, whatever our umask is
			return nil, fmt.Errorf("block device %s: %w", b.ID, err)
		}
		if _, err := io.Copy(f, io.NewSectionReader(b.File, 0, st.Size())); err != nil {
			return nil, fmt.Errorf("block device %s: %w", b.ID, err)
		}
		blocks[i].File = f
	}
	return blocks, nil
}

// environment is the VMM's whole environment. No variable of this process is passed on.
func environment() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C"}
}

// fit tells why a VMM that answers cannot run a VM.
func fit(spec hypervisor.VMSpec, v clhapi.VmmPingResponse) error {
	major, err := majorOf(v.Version)
	if err != nil {
		return fmt.Errorf("the VMM says that its version is %.40q", printable(v.Version))
	}
	least, features := minVersion, []string{"kvm"}
	if spec.TEE == hypervisor.TEESNP {
		least, features = minVersionSNP, append(features, "igvm", "sev_snp")
		if spec.Boot.Kernel != nil {
			features = append(features, "fw_cfg")
		}
	}
	if major < least {
		return fmt.Errorf("this is Cloud Hypervisor %d: %d or later is needed", major, least)
	}
	missing := slices.DeleteFunc(slices.Clone(features), func(f string) bool { return slices.Contains(v.Features, f) })
	if len(missing) > 0 {
		return fmt.Errorf("this Cloud Hypervisor %d was built without %s: build it with --no-default-features --features %s",
			major, strings.Join(missing, ", "), strings.Join(features, ","))
	}
	return nil
}

// majorOf reads the first number of "v53.0-12-gabc" or "53.0.0".
func majorOf(version string) (int, error) {
	number, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	return strconv.Atoi(number)
}

// endpoints are this process's ends of the connections with a VMM, and the VMM's ends until they are handed over.
type endpoints struct {
	dir         string
	api         *os.File // listening socket
	events      *os.File
	eventsPeer  *os.File
	console     *os.File
	consoleHold *os.File // keeps the console from ending before the VMM has opened it
}

func openEnds(dir string) (_ *endpoints, err error) {
	e := &endpoints{dir: dir}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.api, err = listen(filepath.Join(dir, apiSocket)); err != nil {
		return nil, fmt.Errorf("make the API's socket: %w", err)
	}
	if e.events, e.eventsPeer, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("make the pipe for events: %w", err)
	}
	fifo := filepath.Join(dir, consoleFIFO)
	if err = unix.Mkfifo(fifo, 0o600); err != nil {
		return nil, fmt.Errorf("make the console's FIFO %s: %w", fifo, err)
	}
	if e.console, err = os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, err
	}
	e.consoleHold, err = os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
	return e, err
}

// give makes the VMM's user the owner of a file that it is to open by name. Without a jail it is ours.
func (p Params) give(file string) error {
	if p.placer == nil {
		return nil
	}
	user := int(p.placer.User())
	if err := os.Chown(file, user, user); err != nil {
		return fmt.Errorf("make it the VMM's: %w", err)
	}
	return nil
}

// listen makes a listening socket and returns its descriptor, to be given away.
func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}

func closeFiles(files ...**os.File) {
	for _, f := range files {
		if *f != nil {
			_ = (*f).Close() // nothing was written to it
			*f = nil
		}
	}
}

// handedOver closes the VMM's ends, which it has inherited.
func (e *endpoints) handedOver() { closeFiles(&e.api, &e.eventsPeer) }

// close closes everything and removes the files.
func (e *endpoints) close() {
	closeFiles(&e.api, &e.eventsPeer, &e.events, &e.console, &e.consoleHold)
	e.remove()
}

// remove removes the files in the VM's directory, also those that a dead VMM left.
func (e *endpoints) remove() {
	for _, name := range []string{apiSocket, vsockSocket, consoleFIFO} {
		if err := os.Remove(filepath.Join(e.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			slog.Warn("file left behind", "error", err)
		}
	}
}
