// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
)

// The console survives the VMM and says what the guest printed.
func TestDeathsAreExplained(t *testing.T) {
	panicked := "[    0.1] booting\n[    0.2] Kernel panic - not syncing: VFS: no root\n"
	for _, tt := range []struct {
		name   string
		config clhtest.Config
		phase  hypervisor.Phase
		want   string
	}{
		{
			"off",
			clhtest.Config{GuestEnds: "off", GuestSays: "bye\n"},
			hypervisor.PhaseKernel,
			"the guest switched itself off",
		},
		{
			"reset",
			clhtest.Config{GuestEnds: "reset", GuestSays: "hm\n"},
			hypervisor.PhaseKernel,
			"the guest crashed or restarted itself",
		},
		{
			"reset in silence",
			clhtest.Config{GuestEnds: "reset"},
			hypervisor.PhaseKernel,
			"512 MiB of memory may be too little",
		},
		{
			"panic with words",
			clhtest.Config{GuestEnds: "reset", GuestSays: panicked},
			hypervisor.PhaseKernel,
			"the guest's kernel panicked: VFS: no root",
		},
		{
			"processor",
			clhtest.Config{GuestEnds: "vcpu", GuestSays: "hm\n"},
			hypervisor.PhaseKernel,
			"could not go on with a virtual processor: VcpuRun(Failed to run vcpu Caused by: Unhandled exit)",
		},
		{"panic by event", clhtest.Config{GuestEnds: "panic"}, hypervisor.PhaseKernel, "the guest's kernel panicked"},
		{
			"agent does not answer",
			clhtest.Config{GuestNever: true, GuestSays: "waiting\n"},
			hypervisor.PhaseKernel,
			"the agent did not answer within 700ms",
		},
		{
			"nobody listens",
			clhtest.Config{GuestPorts: []int{}},
			hypervisor.PhaseAgent,
			"the agent did not answer within 700ms",
		},
		{"events cut short", clhtest.Config{GuestEnds: "off", BadEvents: true}, hypervisor.PhaseKernel, "e"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := plain(t)
			s.BootTimeout = 700 * time.Millisecond
			if tt.config.GuestEnds != "" {
				s.BootTimeout, tt.config.GuestDelay = 20*time.Second, "200ms"
			}
			m, _ := up(t, tt.config, s)
			_, err := m.Dial(t.Context(), contract.PortAgent)
			<-m.Done()
			var dead *hypervisor.DeadError
			if !errors.As(err, &dead) || !strings.Contains(dead.Reason, tt.want) || dead.Phase != tt.phase {
				t.Errorf("Dial() = %v, want phase %s, %q", err, tt.phase, tt.want)
			}
			if says := strings.Join(m.Console(), "\n"); says != strings.TrimSpace(tt.config.GuestSays) {
				t.Errorf("Console() = %q, want %q", says, tt.config.GuestSays)
			}
		})
	}
}

func TestACrashWhileItRuns(t *testing.T) {
	m, _ := up(t, clhtest.Config{CrashOn: "vm.add-disk"}, plain(t))
	c, err := m.Dial(t.Context(), contract.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var dead *hypervisor.DeadError
	_, err = m.PlugBlock(t.Context(), hypervisor.Block{ID: "late", File: file(t, "disk")})
	if !errors.As(err, &dead) || dead.Reason != "VMM ended: signal: killed" || dead.Phase != hypervisor.PhaseRun {
		t.Errorf("PlugBlock() = %v, want the VM's end", err)
	}
	<-m.Done()
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Logf("the connection ended: %v", err)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("Stop() of a dead VM = %v", err)
	}
}

// The API's thread still answers when the VMM is ending: its end is the reason, not that answer.
func TestACallThatMeetsTheEnd(t *testing.T) {
	for _, call := range []string{"vm.boot", "vm.info", "vm.add-disk", "vm.remove-device"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, clhtest.Config{ClosingOn: call}, Options{})
			m, err := h.launch(t, plain(t))
			switch call {
			case "vm.add-disk":
				_, err = m.PlugBlock(t.Context(), hypervisor.Block{ID: "late", File: file(t, "disk")})
			case "vm.remove-device":
				err = m.UnplugBlock(t.Context(), "layer-0")
			}
			var dead *hypervisor.DeadError
			if !errors.As(err, &dead) || !strings.Contains(dead.Reason, "virtual processor: VcpuRun") {
				t.Errorf("%s = %v, want the VM's end with its reason", call, err)
			}
		})
	}
}

// A VMM that boots the VM again by itself may be done before it is killed.
func TestASecondBootDoesNotCount(t *testing.T) {
	m, _ := up(t, clhtest.Config{GuestDelay: "1h"}, plain(t)) // its first boot gets nowhere
	m.event(event{Source: "vm", Name: "rebooting"})
	m.event(event{Source: "virtio-device", Name: "activated", Properties: map[string]string{"id": vsockDevice}})
	if c, err := m.Dial(t.Context(), contract.PortAgent); err == nil {
		t.Errorf("the agent of the second boot was reached: %v", c.RemoteAddr())
	}
	<-m.Done()
	var dead *hypervisor.DeadError
	if !errors.As(m.Err(), &dead) || dead.Phase != hypervisor.PhaseKernel {
		t.Errorf("Err() = %v, want a death in phase %s", m.Err(), hypervisor.PhaseKernel)
	}
}

// The error of a VMM that crashed quotes its log without the warnings of each start.
func TestADeadVMMsLogIsWithoutWarnings(t *testing.T) {
	logs := "cloud-hypervisor: 9ms: <vmm> WARN:vmm/src/device_manager.rs:2772 -- read-only, so not sparse\n" +
		"cloud-hypervisor: 1.0s: <vmm> ERROR:vmm/src/vm.rs:1 -- it broke\n"
	m, _ := up(t, clhtest.Config{Logs: logs, CrashOn: "vm.add-disk"}, plain(t))
	if _, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "late", File: file(t, "disk")}); err == nil {
		t.Fatal("PlugBlock() of a VMM that crashed = nil")
	}
	<-m.Done()
	var dead *hypervisor.DeadError
	if !errors.As(m.Err(), &dead) || strings.Contains(dead.Stderr, "WARN") || !strings.Contains(dead.Stderr, "it broke") {
		t.Errorf("last words = %q, want the error alone", dead.Stderr)
	}
}
