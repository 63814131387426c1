// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/console"
)

// drainTimeout bounds the reading of a dead VMM's last words, and the wait for the end of one whose
// connection broke.
const drainTimeout = time.Second

// quitTimeout bounds the VMM's orderly end.
const quitTimeout = 2 * time.Second

// ending is the reason in the VMM's last event before its end.
type ending int

const (
	unannounced ending = iota
	switchedOff
	restarted
)

// machine is a running VM.
type machine struct {
	spec     hypervisor.VMSpec
	par      Params
	proc     hypervisor.Process
	log      *slog.Logger
	api      client
	vsock    string // path of the socket
	ends     *endpoints
	console  console.Tail
	readers  sync.WaitGroup
	readDone chan struct{} // closed when events and console have ended
	booted   chan struct{} // closed when the agent has answered for the first time
	done     chan struct{} // closed when all is gone and err is final

	mu      sync.Mutex
	phase   hypervisor.Phase         // guarded by mu
	ending  ending                   // guarded by mu
	panic   bool                     // guarded by mu; the guest reported one
	why     string                   // guarded by mu; why we ended it
	err     error                    // guarded by mu
	devices map[string]pciAddress    // guarded by mu; by the VMM's names; without address while being plugged
	removed map[string]chan struct{} // guarded by mu; by address: devices being unplugged
}

var (
	_ hypervisor.VM            = (*machine)(nil)
	_ hypervisor.BlockPlugger  = (*machine)(nil)
	_ hypervisor.BlockLocator  = (*machine)(nil)
	_ hypervisor.NICPlugger    = (*machine)(nil)
	_ hypervisor.DevicePlugger = (*machine)(nil)
	_ hypervisor.Counter       = (*machine)(nil)
	_ hypervisor.PowerButton   = (*machine)(nil)
	_ hypervisor.Resizer       = (*machine)(nil)
)

func newMachine(spec hypervisor.VMSpec, par Params, proc hypervisor.Process, ends *endpoints,
	log *slog.Logger,
) *machine {
	m := &machine{
		spec: spec, par: par, proc: proc, log: log, ends: ends,
		api: client{filepath.Join(par.Dir, apiSocket)}, vsock: filepath.Join(par.Dir, vsockSocket),
		readDone: make(chan struct{}), booted: make(chan struct{}), done: make(chan struct{}),
		phase: hypervisor.PhaseVMM, devices: make(map[string]pciAddress), removed: make(map[string]chan struct{}),
	}
	events, tail := ends.events, ends.console
	m.readers.Go(func() {
		if n := readEvents(events, m.event); n > 0 {
			log.Warn("some of the VMM's events could not be read", "vm", spec.ID, "pieces", n)
		}
	})
	m.readers.Go(func() { m.console.Follow(tail) })
	go func() { // ends with the readers
		m.readers.Wait()
		close(m.readDone)
	}()
	return m
}

// start describes the VM to the VMM and boots it.
func (m *machine) start(ctx context.Context, config clhapi.VmConfig) error {
	vctx, cancel := context.WithTimeoutCause(ctx, vmmTimeout, fmt.Errorf("no answer within %v", vmmTimeout))
	defer cancel()
	var vmm clhapi.VmmPingResponse
	if err := m.api.get(vctx, "vmm.ping", &vmm); err != nil {
		return err
	}
	if err := fit(m.spec, vmm); err != nil {
		return err
	}
	bctx, cancel := context.WithTimeoutCause(ctx, m.spec.BootTimeout,
		fmt.Errorf("no answer within %v", m.spec.BootTimeout))
	defer cancel()
	if err := m.api.put(bctx, "vm.create", config, nil); err != nil {
		return err
	}
	closeFiles(&m.ends.consoleHold) // the VMM has it open now
	for _, n := range m.spec.NICs {
		if err := m.api.put(bctx, "vm.add-net", netConfig(n), nil, n.Tap...); err != nil {
			return fmt.Errorf("network interface %s: %w", n.ID, err)
		}
	}
	if err := m.api.put(bctx, "vm.boot", nil, nil); err != nil {
		return err
	}
	m.enter(hypervisor.PhaseKernel)
	if e, ok := m.proc.(hypervisor.Emptier); ok { // it has opened all that it needs by name
		if err := e.Empty(); err != nil {
			return err
		}
	}
	if err := m.locate(bctx); err != nil {
		return err
	}
	m.log.Info("VM runs", "vm", m.spec.ID, "pid", m.proc.PID(), "cloud-hypervisor", vmm.Version, "landlock",
		m.par.Landlock)
	return nil
}

// locate learns where the devices are that the VM booted with.
func (m *machine) locate(ctx context.Context) error {
	var info clhapi.VmInfo
	if err := m.api.get(ctx, "vm.info", &info); err != nil {
		return err
	}
	var names []string
	for _, b := range m.spec.Blocks {
		names = append(names, diskName(b.ID))
	}
	for _, n := range m.spec.NICs {
		names = append(names, nicName(n.ID))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		addr, err := addressOf(info, name)
		if err != nil {
			return err
		}
		m.devices[name] = addr
	}
	return nil
}

// ID is the sandbox's id.
func (m *machine) ID() string { return m.spec.ID }

// Done is closed once the VMM is gone and Err is final.
func (m *machine) Done() <-chan struct{} { return m.done }

// Err returns the reason of the VM's end.
func (m *machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Console returns the guest's last lines.
func (m *machine) Console() []string { return m.console.Lines() }

var phases = []hypervisor.Phase{hypervisor.PhaseVMM, hypervisor.PhaseKernel, hypervisor.PhaseAgent, hypervisor.PhaseRun}

// enter moves to a later phase; earlier ones are ignored.
func (m *machine) enter(p hypervisor.Phase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Index(phases, p) <= slices.Index(phases, m.phase) {
		return
	}
	m.phase = p
	if p == hypervisor.PhaseRun {
		close(m.booted)
	}
}

func (m *machine) currentPhase() hypervisor.Phase {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.phase
}

// event is called for each event of the VMM.
func (m *machine) event(e event) {
	switch e.Source + " " + e.Name {
	case "virtio-device activated":
		if e.Properties["id"] == vsockDevice && m.announced() == unannounced { // the guest's driver has it
			m.enter(hypervisor.PhaseAgent)
		}
	case "vm device-removed":
		m.mu.Lock()
		if ch := m.removed[e.Properties["bdf"]]; ch != nil {
			close(ch)
			delete(m.removed, e.Properties["bdf"])
		}
		m.mu.Unlock()
	case "guest panic":
		m.mu.Lock()
		m.panic = true
		m.mu.Unlock()
	case "vm shutdown":
		m.announce(switchedOff)
	case "vm rebooting":
		// The VMM boots the VM again by itself, and may be done before it is killed: nothing that this second
		// boot does counts.
		m.announce(restarted)
		if err := m.proc.Kill(); err != nil {
			m.log.Error("VMM cannot be killed", "vm", m.spec.ID, "error", err)
		}
	}
}

func (m *machine) announce(e ending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ending == unannounced {
		m.ending = e
	}
}

func (m *machine) announced() ending {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ending
}

// watch waits for the end of the VMM, enforces the boot deadline, and cleans up.
func (m *machine) watch() {
	timer := time.NewTimer(m.spec.BootTimeout)
	defer timer.Stop()
	booted, deadline := m.booted, timer.C
	for alive := true; alive; {
		select {
		case <-booted:
			booted, deadline = nil, nil
		case <-deadline:
			m.kill(fmt.Sprintf("the agent did not answer within %v", m.spec.BootTimeout))
			booted, deadline = nil, nil
		case <-m.proc.Done():
			alive = false
		}
	}
	m.cleanUp()
	err := m.autopsy()
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	m.log.Info("VM has ended", "vm", m.spec.ID, "phase", string(err.Phase), "reason", err.Reason)
	close(m.done)
}

// kill ends the VMM for a reason that Err will give.
func (m *machine) kill(why string) {
	m.blame(why)
	if err := m.proc.Kill(); err != nil {
		m.log.Error("VMM cannot be killed", "vm", m.spec.ID, "error", err)
	}
}

// blame notes why the VM ends, unless there is a reason already.
func (m *machine) blame(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.why == "" {
		m.why = why
	}
}

// cleanUp collects a dead VMM's last words and releases everything.
func (m *machine) cleanUp() {
	closeFiles(&m.ends.consoleHold)
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-m.readDone:
	case <-timer.C: // somebody else holds the VMM's descriptors
	}
	m.ends.close()
	<-m.readDone
}

// abandon ends a VMM that did not get a VM to run.
func (m *machine) abandon(cause error) error {
	if lost(cause) {
		m.awaitDeath()
	}
	died := m.dead()  // by itself
	_ = m.proc.Kill() // the caller waits for its end
	<-m.proc.Done()
	m.cleanUp()
	e := m.autopsy()
	if died { // its end tells more than the call that met it
		e.Reason += fmt.Sprintf(" (%v)", cause)
	} else {
		e.Reason = cause.Error()
	}
	return e
}

// autopsy finds the reason of the VM's end.
func (m *machine) autopsy() *hypervisor.DeadError {
	m.mu.Lock()
	phase, ending, panicked, why := m.phase, m.ending, m.panic, m.why
	m.mu.Unlock()
	e := &hypervisor.DeadError{VM: m.spec.ID, Phase: phase, Stderr: withoutWarnings(m.proc.Stderr()), Console: m.Console()}
	words, broken := m.console.Panicked(), vcpuError(m.proc.Stderr())
	switch {
	case why != "":
		e.Reason = why
	case broken != "":
		e.Reason = "the VMM could not go on with a virtual processor: " + broken
	case words != "":
		e.Reason = "the guest's kernel panicked: " + words
	case panicked:
		e.Reason = "the guest's kernel panicked"
	case ending == restarted && phase == hypervisor.PhaseKernel && m.console.Silent():
		e.Reason = fmt.Sprintf("the guest crashed before its kernel printed anything: %d MiB of memory may be too little "+
			"for this kernel and initramfs", m.spec.MemoryMiB)
	case ending == restarted:
		e.Reason = "the guest crashed or restarted itself"
	case ending == switchedOff:
		e.Reason = "the guest switched itself off"
	default:
		e.Reason = "VMM ended: " + m.proc.ExitStatus()
	}
	return e
}

// Stop ends the VM without the guest's cooperation. For an orderly end the caller asks the agent first.
func (m *machine) Stop(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	m.blame("stopped on request")
	qctx, cancel := context.WithTimeout(ctx, quitTimeout)
	defer cancel()
	// An error means that it is gone, or hangs and is killed now.
	if err := m.api.put(qctx, "vmm.shutdown", nil, nil); err == nil {
		select {
		case <-m.done:
			return nil
		case <-qctx.Done():
		}
	}
	if err := m.proc.Kill(); err != nil {
		return fmt.Errorf("stop VM %s: %w", m.spec.ID, err)
	}
	timer := time.NewTimer(reapTimeout)
	defer timer.Stop()
	select {
	case <-m.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("stop VM %s: process %d is still there %v after SIGKILL", m.spec.ID, m.proc.PID(), reapTimeout)
	}
}
