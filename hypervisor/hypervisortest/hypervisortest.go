// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hypervisortest is a hypervisor in memory for tests of other packages: a Driver whose VMs
// keep state and behave like real ones, with faults on demand. A guest is a function that serves the
// VM's connections in process.
package hypervisortest

import (
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/vmm"
)

// Op names an operation that can be made to fail.
type Op string

// The operations.
const (
	Exec        Op = "Exec"
	Launch      Op = "Launch"
	Dial        Op = "Dial"
	Stop        Op = "Stop"
	PlugBlock   Op = "PlugBlock"
	UnplugBlock Op = "UnplugBlock"
	PlugNIC     Op = "PlugNIC"
	UnplugNIC   Op = "UnplugNIC"
)

// Guest serves one connection to a port of a VM. It owns the connection, and returns when that ends.
// A nil Guest refuses all ports.
type Guest func(vm *VM, port uint32, conn net.Conn)

// Driver launches VMs in memory.
type Driver struct {
	guest Guest

	mu     sync.Mutex
	faults map[Op][]error // guarded by mu
	vms    []*VM          // guarded by mu
	procs  []*Process     // guarded by mu
}

var (
	_ hypervisor.Driver = (*Driver)(nil)
	_ vmm.Kind          = (*Driver)(nil)
)

// Option configures a driver.
type Option func(*Driver)

// FailOn makes the next call of op fail with err. Given several times, each call takes one.
func FailOn(op Op, err error) Option { return func(d *Driver) { d.Fail(op, err) } }

// WithGuest sets what runs in the VMs.
func WithGuest(g Guest) Option { return func(d *Driver) { d.guest = g } }

// New makes a driver. When the test ends it fails if a VM or process still runs.
func New(t testing.TB, opts ...Option) *Driver {
	t.Helper()
	d := &Driver{faults: make(map[Op][]error)}
	for _, o := range opts {
		o(d)
	}
	t.Cleanup(func() {
		for _, l := range d.Leaks() {
			t.Errorf("left behind: %s", l)
		}
	})
	return d
}

// Fail makes the next call of op fail with err.
func (d *Driver) Fail(op Op, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults[op] = append(d.faults[op], err)
}

// fault takes the next injected error of op.
func (d *Driver) fault(op Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.faults[op]
	if len(f) == 0 {
		return nil
	}
	d.faults[op] = f[1:]
	return f[0]
}

// VMs returns all that were launched, dead ones included.
func (d *Driver) VMs() []*VM {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*VM(nil), d.vms...)
}

// Leaks names processes that still run.
func (d *Driver) Leaks() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, p := range d.procs {
		select {
		case <-p.done:
		default:
			out = append(out, fmt.Sprintf("process %d", p.pid))
		}
	}
	return out
}

// Name is "fake".
func (d *Driver) Name() string { return "fake" }

// Begin forks a process in memory.
func (d *Driver) Begin(ctx context.Context, p hypervisor.Place) (hypervisor.Pending, error) {
	fork := func(context.Context, hypervisor.Place) (hypervisor.Process, error) { return d.NewProcess(), nil }
	return vmm.NewDriver(d, fork).Begin(ctx, p)
}

// Launch makes a VM of the process.
func (d *Driver) Launch(ctx context.Context, spec hypervisor.VMSpec, proc hypervisor.Process,
	_ string,
) (hypervisor.VM, error) {
	err := d.fault(Launch)
	if err == nil {
		err = proc.Exec(ctx, []string{"fake-vmm", spec.ID}, nil, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("launch VM %s: %w", spec.ID, err)
	}
	vm := &VM{
		driver: d, Spec: spec, proc: proc, done: make(chan struct{}),
		blocks: make(map[string]hypervisor.BlockAddress), nics: make(map[string]string),
	}
	for _, b := range spec.Blocks {
		vm.blocks[b.ID] = vm.nextAddressLocked()
	}
	d.mu.Lock()
	d.vms = append(d.vms, vm)
	d.mu.Unlock()
	go vm.watch()
	return vm, nil
}

// VM is a VM in memory. It implements all capabilities.
type VM struct {
	Spec   hypervisor.VMSpec
	driver *Driver
	proc   hypervisor.Process
	done   chan struct{}
	guests sync.WaitGroup

	mu      sync.Mutex
	blocks  map[string]hypervisor.BlockAddress // guarded by mu
	nics    map[string]string                  // guarded by mu
	next    int                                // guarded by mu; number of the next place
	conns   []net.Conn                         // guarded by mu; both ends
	dialed  bool                               // guarded by mu
	dead    bool                               // guarded by mu
	reason  string                             // guarded by mu
	console []string                           // guarded by mu
	err     error                              // guarded by mu
}

var (
	_ hypervisor.VM           = (*VM)(nil)
	_ hypervisor.BlockPlugger = (*VM)(nil)
	_ hypervisor.BlockLocator = (*VM)(nil)
	_ hypervisor.NICPlugger   = (*VM)(nil)
)

// watch ends the VM with its process.
func (v *VM) watch() {
	<-v.proc.Done()
	v.mu.Lock()
	v.dead = true
	conns := v.conns
	phase, reason := hypervisor.PhaseKernel, v.reason
	if v.dialed {
		phase = hypervisor.PhaseRun
	}
	if reason == "" {
		reason = "VMM ended: " + v.proc.ExitStatus()
	}
	v.err = &hypervisor.DeadError{
		VM: v.Spec.ID, Phase: phase, Reason: reason, Stderr: v.proc.Stderr(),
		Console: append([]string(nil), v.console...),
	}
	v.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // in memory
	}
	v.guests.Wait()
	close(v.done)
}

// Die ends the VM as a crash does.
func (v *VM) Die(reason string) {
	v.mu.Lock()
	if v.reason == "" {
		v.reason = reason
	}
	v.mu.Unlock()
	_ = v.proc.Kill() // in memory
	<-v.done
}

// Print adds a line to the console.
func (v *VM) Print(line string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.console = append(v.console, line)
}

// ID is the spec's.
func (v *VM) ID() string { return v.Spec.ID }

// Done is closed once the VM has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// Err says why the VM ended.
func (v *VM) Err() error {
	select {
	case <-v.done:
	default:
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// Console returns the last lines that were printed.
func (v *VM) Console() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string(nil), v.console[max(0, len(v.console)-hypervisor.ConsoleLines):]...)
}

// Dial connects to the guest.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := v.enter(ctx, Dial); err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", port, err)
	}
	if v.driver.guest == nil {
		return nil, fmt.Errorf("dial guest port %d: nobody listens", port)
	}
	host, guest := net.Pipe()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return nil, fmt.Errorf("dial guest port %d: VM %s has ended", port, v.Spec.ID)
	}
	v.dialed = true
	v.conns = append(v.conns, host, guest)
	v.guests.Go(func() { v.driver.guest(v, port, guest) })
	return host, nil
}

// enter is the start of each operation: dead VMs, ended contexts and injected faults.
func (v *VM) enter(ctx context.Context, op Op) error {
	v.mu.Lock()
	dead := v.dead
	v.mu.Unlock()
	if dead {
		<-v.done
		return v.Err()
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return v.driver.fault(op)
}

// Stop ends the VM.
func (v *VM) Stop(context.Context) error {
	if err := v.driver.fault(Stop); err != nil {
		return fmt.Errorf("stop VM %s: %w", v.Spec.ID, err)
	}
	v.Die("stopped on request")
	return nil
}

func (v *VM) nextAddressLocked() hypervisor.BlockAddress {
	n := v.next
	v.next++
	if v.Spec.BlockBus == hypervisor.BlockBlk {
		return hypervisor.BlockAddress{Driver: contract.DriverBlk, Source: fmt.Sprintf("%02x/00", 0x10+n)}
	}
	return hypervisor.BlockAddress{Driver: contract.DriverSCSI, Source: fmt.Sprintf("%d:0", n)}
}

// PlugBlock attaches a disk. Its file must be open.
func (v *VM) PlugBlock(ctx context.Context, b hypervisor.Block) (hypervisor.BlockAddress, error) {
	if err := v.enter(ctx, PlugBlock); err != nil {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug block device %s: %w", b.ID, err)
	}
	if b.File == nil {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug block device %s: no file: %w", b.ID, errdefs.ErrInvalidArgument)
	}
	if _, err := b.File.Stat(); err != nil {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug block device %s: %w", b.ID, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.blocks[b.ID]; ok {
		return hypervisor.BlockAddress{}, fmt.Errorf("plug block device %s: plugged in already: %w", b.ID,
			errdefs.ErrFailedPrecondition)
	}
	v.blocks[b.ID] = v.nextAddressLocked()
	return v.blocks[b.ID], nil
}

// UnplugBlock takes a disk away.
func (v *VM) UnplugBlock(ctx context.Context, id string) error {
	if err := v.enter(ctx, UnplugBlock); err != nil {
		return fmt.Errorf("unplug block device %s: %w", id, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.blocks[id]; !ok {
		return fmt.Errorf("unplug block device %s: %w", id, errdefs.ErrNotFound)
	}
	delete(v.blocks, id)
	return nil
}

// BlockAddress tells where a disk is.
func (v *VM) BlockAddress(id string) (hypervisor.BlockAddress, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a, ok := v.blocks[id]
	return a, ok
}

// Blocks returns the ids of all disks, sorted.
func (v *VM) Blocks() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	ids := make([]string, 0, len(v.blocks))
	for id := range v.blocks {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// PlugNIC attaches an interface.
func (v *VM) PlugNIC(ctx context.Context, n hypervisor.NIC) (string, error) {
	if err := v.enter(ctx, PlugNIC); err != nil {
		return "", fmt.Errorf("plug network interface %s: %w", n.ID, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.nics[n.ID]; ok {
		return "", fmt.Errorf("plug network interface %s: plugged in already: %w", n.ID, errdefs.ErrFailedPrecondition)
	}
	v.nics[n.ID] = fmt.Sprintf("%02x/00", 0x10+v.next)
	v.next++
	return v.nics[n.ID], nil
}

// UnplugNIC takes an interface away.
func (v *VM) UnplugNIC(ctx context.Context, id string) error {
	if err := v.enter(ctx, UnplugNIC); err != nil {
		return fmt.Errorf("unplug network interface %s: %w", id, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.nics[id]; !ok {
		return fmt.Errorf("unplug network interface %s: %w", id, errdefs.ErrNotFound)
	}
	delete(v.nics, id)
	return nil
}

// Process is a launched process in memory.
type Process struct {
	driver *Driver
	pid    int
	done   chan struct{}
	once   sync.Once

	mu   sync.Mutex
	argv []string // guarded by mu; nil before Exec
}

var _ hypervisor.Process = (*Process)(nil)

// NewProcess forks a process in memory.
func (d *Driver) NewProcess() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := &Process{driver: d, pid: 1<<22 + 1 + len(d.procs), done: make(chan struct{})} // beyond PID_MAX_LIMIT
	d.procs = append(d.procs, p)
	return p
}

// PID is a number that no real process has.
func (p *Process) PID() int { return p.pid }

// Exec records the command line.
func (p *Process) Exec(ctx context.Context, argv, _ []string, _ []*os.File) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := p.driver.fault(Exec); err != nil {
		return err
	}
	select {
	case <-p.done:
		return fmt.Errorf("exec in process %d: it has ended", p.pid)
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.argv != nil {
		return fmt.Errorf("exec in process %d: called before", p.pid)
	}
	p.argv = argv
	return nil
}

// Done is closed after Kill.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitStatus is "signal: killed".
func (p *Process) ExitStatus() string { return "signal: killed" }

// Kill ends the process.
func (p *Process) Kill() error { p.once.Do(func() { close(p.done) }); return nil }

// Stderr is empty.
func (p *Process) Stderr() string { return "" }
