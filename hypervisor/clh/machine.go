// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/vmm"
)

// machine is a running VM.
type machine struct {
	*vmm.Life
	par     Params
	api     client
	vsock   string // path of the socket
	ends    *endpoints
	removed vmm.Removals // by address

	mu      sync.Mutex
	ending  vmm.Ending            // guarded by mu; the reason in the VMM's last event before its end
	panic   bool                  // guarded by mu; the guest reported one
	devices map[string]pciAddress // guarded by mu; by the VMM's names; without address while being plugged
}

var (
	_ vmm.Control             = (*machine)(nil)
	_ hypervisor.VM           = (*machine)(nil)
	_ hypervisor.BlockPlugger = (*machine)(nil)
	_ hypervisor.BlockLocator = (*machine)(nil)
	_ hypervisor.NICPlugger   = (*machine)(nil)
	_ hypervisor.Pauser       = (*machine)(nil)
)

func newMachine(spec hypervisor.VMSpec, par Params, proc hypervisor.Process, ends *endpoints,
	log *slog.Logger,
) *machine {
	m := &machine{
		par: par, ends: ends, devices: make(map[string]pciAddress),
		api: client{filepath.Join(par.Dir, apiSocket)}, vsock: filepath.Join(par.Dir, vsockSocket),
	}
	m.Life = vmm.NewLife(m, spec, proc, log)
	events := ends.events
	m.Read(func() {
		if n := readEvents(events, m.event); n > 0 {
			log.Warn("some of the VMM's events could not be read", "vm", spec.ID, "pieces", n)
		}
	})
	m.Follow(ends.console)
	return m
}

// start describes the VM to the VMM and boots it.
func (m *machine) start(ctx context.Context, config clhapi.VmConfig) error {
	actx, cancel := context.WithTimeoutCause(ctx, vmm.AnswerTimeout, fmt.Errorf("no answer within %v", vmm.AnswerTimeout))
	defer cancel()
	var build clhapi.VmmPingResponse
	if err := m.api.get(actx, "vmm.ping", &build); err != nil {
		return err
	}
	if err := fit(m.Spec, build); err != nil {
		return err
	}
	bctx, cancel := context.WithTimeoutCause(ctx, m.Spec.BootTimeout,
		fmt.Errorf("no answer within %v", m.Spec.BootTimeout))
	defer cancel()
	if err := m.api.put(bctx, "vm.create", config, nil); err != nil {
		return err
	}
	closeFiles(&m.ends.consoleHold) // the VMM has it open now
	for _, n := range m.Spec.NICs {
		if err := m.api.put(bctx, "vm.add-net", netConfig(n), nil, n.Tap...); err != nil {
			return fmt.Errorf("network interface %s: %w", n.ID, err)
		}
	}
	if err := m.api.put(bctx, "vm.boot", nil, nil); err != nil {
		return err
	}
	m.Enter(hypervisor.PhaseKernel)
	if err := m.Empty(); err != nil { // it has opened all that it needs by name
		return err
	}
	if err := m.locate(bctx); err != nil {
		return err
	}
	m.Log.Info("VM runs", "vm", m.Spec.ID, "pid", m.Proc.PID(), "cloud-hypervisor", build.Version, "landlock",
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
	for _, b := range m.Spec.Blocks {
		names = append(names, diskName(b.ID))
	}
	for _, n := range m.Spec.NICs {
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

// event is called for each event of the VMM.
func (m *machine) event(e event) {
	switch e.Source + " " + e.Name {
	case "virtio-device activated":
		if e.Properties["id"] == vsockDevice && m.announced() == vmm.Unreported { // the guest's driver has it
			m.Enter(hypervisor.PhaseAgent)
		}
	case "vm device-removed":
		m.removed.Gone(e.Properties["bdf"])
	case "guest panic":
		m.mu.Lock()
		m.panic = true
		m.mu.Unlock()
	case "vm shutdown":
		m.announce(vmm.SwitchedOff)
	case "vm rebooting":
		// The VMM boots the VM again by itself, and may be done before it is killed: nothing that this second
		// boot does counts.
		m.announce(vmm.Restarted)
		m.Kill("")
	}
}

func (m *machine) announce(e vmm.Ending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ending == vmm.Unreported {
		m.ending = e
	}
}

func (m *machine) announced() vmm.Ending {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ending
}

// Lost is nil: each call of the API has a connection of its own.
func (m *machine) Lost() <-chan struct{} { return nil }

// Ending reports whether an error is one of a VMM that has ended or is ending. While it ends, the API's thread still
// answers, but the thread that executes the calls has ended.
func (m *machine) Ending(err error) bool {
	var r *apiError
	if errors.As(err, &r) {
		return strings.Contains(r.reason, "on a closed channel")
	}
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE, unix.ECONNREFUSED} {
		if errors.Is(err, broken) {
			return true
		}
	}
	return false
}

// Quit tells the VMM to end.
func (m *machine) Quit(ctx context.Context) error { return m.api.put(ctx, "vmm.shutdown", nil, nil) }

// Cause is what the VMM's events and log say. A virtual processor that fails ends the VMM as if the guest had switched
// itself off; the log has the error.
func (m *machine) Cause(stderr string) vmm.Cause {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := vmm.Cause{Ending: m.ending, Panicked: m.panic, Stderr: withoutWarnings(stderr)}
	if broken := vcpuError(stderr); broken != "" {
		c.Reason = "the VMM could not go on with a virtual processor: " + broken
	}
	return c
}

// Release closes the connections with a VMM that has ended, and removes its files.
func (m *machine) Release() { m.ends.close() }
