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
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/console"
	"github.com/coco-shim/coco/hypervisor/qemu/qmp"
	"github.com/coco-shim/coco/internal/portmux"
)

// drainTimeout bounds the reading of a dead VMM's last words.
const drainTimeout = time.Second

// machine is a running VM.
type machine struct {
	spec        hypervisor.VMSpec
	proc        hypervisor.Process
	log         *slog.Logger
	qmp         *qmp.Client
	mux         *portmux.Dialer
	console     console.Tail
	consoleConn io.Closer
	consoleDone chan struct{}
	booted      chan struct{} // closed when the agent has answered for the first time
	done        chan struct{} // closed when all is gone and err is final
	targets     *slots        // places on the SCSI bus
	ports       *slots        // places on PCIe root ports

	mu       sync.Mutex
	phase    hypervisor.Phase         // guarded by mu
	shutdown string                   // guarded by mu; the reason in the VMM's SHUTDOWN event
	why      string                   // guarded by mu; why we ended it
	err      error                    // guarded by mu
	removed  map[string]chan struct{} // guarded by mu; devices being unplugged
}

var (
	_ hypervisor.VM           = (*machine)(nil)
	_ hypervisor.BlockPlugger = (*machine)(nil)
	_ hypervisor.BlockLocator = (*machine)(nil)
	_ hypervisor.NICPlugger   = (*machine)(nil)
)

func newMachine(spec hypervisor.VMSpec, proc hypervisor.Process, log *slog.Logger) *machine {
	m := &machine{
		spec: spec, proc: proc, log: log,
		booted: make(chan struct{}), done: make(chan struct{}),
		targets: newSlots(scsiTargets), ports: newSlots(spec.HotplugPorts),
		phase: hypervisor.PhaseVMM, removed: make(map[string]chan struct{}),
	}
	for _, b := range spec.Blocks { // Build gives them the first places, in order
		_, _ = m.blockSlots().take(b.ID) // valid specs have room and distinct ids
	}
	return m
}

func (m *machine) blockSlots() *slots {
	if m.spec.BlockBus == hypervisor.BlockSCSI {
		return m.targets
	}
	return m.ports
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

// enter moves to a later phase; earlier ones are ignored.
func (m *machine) enter(p hypervisor.Phase) {
	order := []hypervisor.Phase{hypervisor.PhaseVMM, hypervisor.PhaseKernel, hypervisor.PhaseAgent, hypervisor.PhaseRun}
	index := func(p hypervisor.Phase) (n int) {
		for i, o := range order {
			if o == p {
				n = i
			}
		}
		return n
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if index(p) <= index(m.phase) {
		return
	}
	m.phase = p
	if p == hypervisor.PhaseRun {
		close(m.booted)
	}
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
	}
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &data) != nil {
		return // of a shape that is none of ours
	}
	switch e.Name {
	case "VSERPORT_CHANGE":
		if data.ID == agentDevice && data.Open {
			m.enter(hypervisor.PhaseAgent)
		}
	case "SHUTDOWN":
		m.mu.Lock()
		m.shutdown = qmp.Words(data.Reason)
		m.mu.Unlock()
	case "DEVICE_DELETED":
		m.mu.Lock()
		if ch := m.removed[data.Device]; ch != nil {
			close(ch)
			delete(m.removed, data.Device)
		}
		m.mu.Unlock()
	}
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
		case <-m.qmp.Done():
			m.lostControl()
			alive = false
		case <-m.proc.Done():
			alive = false
		}
	}
	<-m.proc.Done()
	m.finish()
}

// lostControl waits for the end of a VMM that has closed its control connection, as it does when it
// ends; one that goes on living is killed.
func (m *machine) lostControl() {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-m.proc.Done():
	case <-timer.C:
		m.kill("the control connection to the VMM broke")
	}
}

// kill ends the VMM for a reason that Err will give.
func (m *machine) kill(why string) {
	m.mu.Lock()
	if m.why == "" {
		m.why = why
	}
	m.mu.Unlock()
	if err := m.proc.Kill(); err != nil {
		m.log.Error("VMM cannot be killed", "vm", m.spec.ID, "error", err)
	}
}

// finish collects a dead VMM's last words and releases everything.
func (m *machine) finish() {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	for _, ch := range []<-chan struct{}{m.qmp.Done(), m.consoleDone} {
		select {
		case <-ch:
		case <-timer.C: // somebody else holds the VMM's descriptors
		}
	}
	m.qmp.Close()
	_ = m.consoleConn.Close() // only read
	<-m.consoleDone
	_ = m.mux.Close() // the peer is gone
	err := m.autopsy()
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	m.log.Info("VM has ended", "vm", m.spec.ID, "phase", string(err.Phase), "reason", err.Reason)
	close(m.done)
}

// abandon ends a VMM that did not answer on its control socket.
func (m *machine) abandon(cause error) error {
	reason := cause.Error()
	select {
	case <-m.proc.Done():
	default:
		if errors.Is(cause, qmp.ErrClosed) { // it is dying: its status tells more
			select {
			case <-m.proc.Done():
			case <-time.After(drainTimeout):
			}
		}
	}
	select {
	case <-m.proc.Done():
		reason = "VMM ended: " + m.proc.ExitStatus()
	default:
	}
	_ = m.proc.Kill() // the caller waits for its end
	<-m.proc.Done()
	_ = m.consoleConn.Close() // only read
	<-m.consoleDone
	return &hypervisor.DeadError{
		VM: m.spec.ID, Phase: hypervisor.PhaseVMM, Reason: reason, Stderr: m.proc.Stderr(),
		Console: m.Console(),
	}
}

// autopsy finds the reason of the VM's end. The VMM's exit status is not enough: it is 0 after a guest panic.
func (m *machine) autopsy() *hypervisor.DeadError {
	m.mu.Lock()
	phase, shutdown, why := m.phase, m.shutdown, m.why
	m.mu.Unlock()
	e := &hypervisor.DeadError{VM: m.spec.ID, Phase: phase, Stderr: m.proc.Stderr(), Console: m.Console()}
	words := m.console.Panicked()
	switch {
	case why != "":
		e.Reason = why
	case words != "":
		e.Reason = "the guest's kernel panicked: " + words
	case shutdown == "guest-reset" || shutdown == "guest-panic":
		e.Reason = "the guest crashed or restarted itself"
	case strings.HasPrefix(shutdown, "guest"):
		e.Reason = "the guest switched itself off"
	case shutdown == "host-signal":
		e.Reason = "VMM ended: somebody sent it a signal"
	default:
		e.Reason = "VMM ended: " + m.proc.ExitStatus()
	}
	if strings.HasPrefix(shutdown, "guest") && why == "" && phase == hypervisor.PhaseKernel && m.console.Silent() {
		e.Reason = fmt.Sprintf("the guest crashed before its kernel printed anything: %d MiB of memory may be too little "+
			"for this kernel and initramfs", m.spec.MemoryMiB)
	}
	if m.console.Mentions("Initramfs unpacking failed", "deadlocked on memory", "Out of memory") &&
		phase != hypervisor.PhaseRun {
		e.Reason += fmt.Sprintf(" (%d MiB of memory are too little for this guest image)", m.spec.MemoryMiB)
	}
	return e
}

// Dial connects to a port of the guest.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	dctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the call
		select {
		case <-m.proc.Done():
			cancel(portmux.ErrLost)
		case <-stop:
		}
	}()
	c, err := m.mux.Dial(dctx, port)
	if err == nil {
		m.enter(hypervisor.PhaseRun)
		return c, nil
	}
	if errors.Is(err, portmux.ErrLost) || errors.Is(context.Cause(dctx), portmux.ErrLost) {
		select {
		case <-m.done: // soon, since the VMM is dead or dying
			return nil, fmt.Errorf("dial guest port %d: %w", port, m.Err())
		case <-ctx.Done():
		}
	}
	m.mu.Lock()
	phase := m.phase
	m.mu.Unlock()
	if phase == hypervisor.PhaseRun || ctx.Err() == nil {
		return nil, fmt.Errorf("VM %s: %w", m.spec.ID, err)
	}
	where := &hypervisor.DeadError{
		VM: m.spec.ID, Phase: phase, Reason: "the agent has not answered yet",
		Console: m.Console(),
	}
	return nil, fmt.Errorf("%w: %w", err, where)
}

// Stop ends the VM without the guest's cooperation. For an orderly end the caller asks the agent first.
func (m *machine) Stop(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	m.mu.Lock()
	if m.why == "" {
		m.why = "stopped on request"
	}
	m.mu.Unlock()
	qctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	// An error means that it is gone, or hangs and is killed now.
	if err := m.qmp.Call(qctx, "quit", nil, nil); err == nil {
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
