// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/qmp"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/portmux"
)

// machine is a running VM.
type machine struct {
	*vmm.Life
	ends    *endpoints
	qmp     *qmp.Client // nil before the greeting
	mux     *portmux.Dialer
	targets *slots // places on the SCSI bus
	ports   *slots // places on PCIe root ports
	removed vmm.Removals

	cloned    bool          // it started from a template
	migration chan string   // how the writing or reading of a state goes on
	agentUp   chan struct{} // closed when the guest has opened the agent's channel

	mu       sync.Mutex
	shutdown string // guarded by mu; the reason in the VMM's SHUTDOWN event
	opened   bool   // guarded by mu; agentUp is closed
}

// migrationSteps is more than the states that QEMU's MIGRATION event tells of one migration.
const migrationSteps = 16

var (
	_ vmm.Control             = (*machine)(nil)
	_ hypervisor.VM           = (*machine)(nil)
	_ hypervisor.BlockPlugger = (*machine)(nil)
	_ hypervisor.BlockLocator = (*machine)(nil)
	_ hypervisor.NICPlugger   = (*machine)(nil)
	_ hypervisor.Pauser       = (*machine)(nil)
)

// errEarlyEnd stands for the errors of a QEMU that ends because of its command line or files. Its standard error tells
// why, and the connection's error nothing.
var errEarlyEnd = errors.New("it closed its control connection before the VM ran")

func newMachine(spec hypervisor.VMSpec, proc hypervisor.Process, ends *endpoints, log *slog.Logger) *machine {
	m := &machine{
		ends: ends, targets: newSlots(scsiTargets), ports: newSlots(spec.HotplugPorts),
		migration: make(chan string, migrationSteps), agentUp: make(chan struct{}),
	}
	m.Life = vmm.NewLife(m, spec, proc, log)
	for _, b := range spec.Blocks { // Build gives them the first places, in order
		_, _ = m.blockSlots().take(b.ID) // valid specs have room and distinct ids
	}
	return m
}

func (m *machine) blockSlots() *slots {
	if m.Spec.BlockBus == hypervisor.BlockSCSI {
		return m.targets
	}
	return m.ports
}

// start waits for the VMM's greeting. The guest runs by itself then.
func (m *machine) start(ctx context.Context) (err error) {
	m.Follow(m.ends.ours[2])
	ctx, cancel := context.WithTimeoutCause(ctx, vmm.AnswerTimeout, fmt.Errorf("no greeting within %v", vmm.AnswerTimeout))
	defer cancel()
	if m.qmp, err = qmp.Connect(ctx, m.ends.ours[1], m.event); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return errEarlyEnd
		}
		return err
	}
	m.mux = portmux.NewDialer(m.ends.ours[0])
	if err := m.Empty(); err != nil { // it has loaded and opened all that it will need
		return err
	}
	m.Enter(hypervisor.PhaseKernel)
	m.Log.Info("VM runs", "vm", m.Spec.ID, "pid", m.Proc.PID(), "qemu", m.qmp.Version().String(), "accel",
		string(m.Spec.Accel))
	return nil
}

// event is called for each event of the VMM, by the control connection's reader.
func (m *machine) event(e qmp.Event) {
	var data struct {
		ID     string `json:"id"`
		Open   bool   `json:"open"`
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		Device string `json:"device"`
		Action string `json:"action"`
		Status string `json:"status"`
	}
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &data) != nil {
		return // of a shape that is none of ours
	}
	switch e.Name {
	case "VSERPORT_CHANGE":
		if data.ID == agentDevice && data.Open {
			m.Enter(hypervisor.PhaseAgent)
			m.agentIsUp()
		}
	case "MIGRATION":
		select {
		case m.migration <- data.Status:
		default: // more than a migration has
		}
	case "SHUTDOWN":
		m.mu.Lock()
		m.shutdown = qmp.Words(data.Reason)
		m.mu.Unlock()
	case "DEVICE_DELETED":
		m.removed.Gone(data.Device)
	}
}

func (m *machine) agentIsUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.opened {
		m.opened = true
		close(m.agentUp)
	}
}

// Lost is closed when the QMP connection has ended.
func (m *machine) Lost() <-chan struct{} {
	if m.qmp == nil {
		return nil
	}
	return m.qmp.Done()
}

// Ending reports whether a command failed because the connection has ended.
func (m *machine) Ending(err error) bool {
	return errors.Is(err, qmp.ErrClosed) || errors.Is(err, errEarlyEnd)
}

// Quit tells QEMU to end.
func (m *machine) Quit(ctx context.Context) error { return m.qmp.Call(ctx, "quit", nil, nil) }

// Connect opens a stream of the virtio-serial channel. The channel ends with the VMM.
func (m *machine) Connect(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := m.mux.Dial(ctx, port)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, portmux.ErrLost):
		return nil, fmt.Errorf("%w: %w", err, vmm.ErrEnded)
	}
	return nil, err
}

// Cause reads QEMU's SHUTDOWN event (ShutdownCause of its QAPI). A crash of the guest is a reset, which ends QEMU
// because of -no-reboot.
func (m *machine) Cause(stderr string) vmm.Cause {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := vmm.Cause{Stderr: stderr}
	switch {
	case m.shutdown == "guest-reset" || m.shutdown == "guest-panic":
		c.Ending = vmm.Restarted
	case strings.HasPrefix(m.shutdown, "guest"):
		c.Ending = vmm.SwitchedOff
	case m.shutdown == "host-signal":
		c.Ending = vmm.Signalled
	}
	return c
}

// Release closes our ends of the connections with a VMM that has ended.
func (m *machine) Release() {
	if m.qmp != nil {
		m.qmp.Close()
	}
	m.ends.closeOurs()
	if m.mux != nil {
		_ = m.mux.Close() // the peer is gone
	}
}
