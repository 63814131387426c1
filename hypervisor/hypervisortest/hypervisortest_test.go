// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func begin(t *testing.T, d *Driver) hypervisor.Pending {
	t.Helper()
	p, err := d.Begin(t.Context(), hypervisor.Place{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func launch(t *testing.T, d *Driver) *VM {
	t.Helper()
	vm, err := begin(t, d).Launch(t.Context(), hypervisor.VMSpec{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return vm.(*VM)
}

func TestTheGuestAnswersUntilTheVMDies(t *testing.T) {
	d := New(t, WithGuest(func(_ *VM, _ uint32, c net.Conn) { _, _ = io.Copy(c, c) }))
	vm := launch(t, d)
	c, err := vm.Dial(t.Context(), contract.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hi" {
		t.Errorf("echo = %q, %v", b, err)
	}
	vm.Print("last words")
	vm.Die("struck by lightning")
	if _, err := c.Read(b); err == nil {
		t.Error("Read() after death = nil")
	}
	var dead *hypervisor.DeadError
	if !errors.As(vm.Err(), &dead) || dead.Reason != "struck by lightning" || dead.Phase != hypervisor.PhaseRun ||
		len(dead.Console) != 1 {
		t.Errorf("Err() = %v", vm.Err())
	}
	if _, err := vm.Dial(t.Context(), contract.PortAgent); !errors.As(err, &dead) {
		t.Errorf("Dial() after death = %v, want a DeadError", err)
	}
}

func TestDevicesAreRemembered(t *testing.T) {
	d := New(t)
	vm := launch(t, d)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: "l0", File: f})
	if got, ok := vm.BlockAddress("l0"); err != nil || !ok || got != a {
		t.Errorf("PlugBlock() = %v, %v; BlockAddress() = %v", a, err, got)
	}
	if _, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: "l0", File: f}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second PlugBlock() = %v", err)
	}
	if err := vm.UnplugBlock(t.Context(), "l0"); err != nil || len(vm.Blocks()) != 0 {
		t.Errorf("UnplugBlock() = %v, left %v", err, vm.Blocks())
	}
	if err := vm.UnplugBlock(t.Context(), "l0"); !errdefs.IsNotFound(err) {
		t.Errorf("second UnplugBlock() = %v", err)
	}
}

func TestContract(t *testing.T) {
	Contract(t, "", func(t *testing.T) hypervisor.VM {
		t.Helper()
		return launch(t, New(t, WithGuest(func(_ *VM, port uint32, c net.Conn) {
			defer c.Close()
			if port == EchoPort {
				_, _ = io.Copy(c, c)
			}
		})))
	})
}

func TestBeginContract(t *testing.T) {
	BeginContract(t, hypervisor.VMSpec{ID: "pod"}, func(t *testing.T) hypervisor.Pending {
		t.Helper()
		return begin(t, New(t))
	})
}

func TestFaultsComeOnceEach(t *testing.T) {
	boom := errors.New("boom")
	d := New(t, FailOn(Launch, boom), FailOn(PlugNIC, boom))
	if _, err := begin(t, d).Launch(t.Context(), hypervisor.VMSpec{ID: "pod"}); !errors.Is(err, boom) {
		t.Errorf("Launch() = %v, want boom", err)
	}
	if l := d.Leaks(); len(l) != 0 {
		t.Errorf("Leaks() = %v after a failed launch, want none", l)
	}
	vm := launch(t, d)
	if l := strings.Join(d.Leaks(), " "); !strings.HasPrefix(l, "process") {
		t.Errorf("Leaks() = %q while a VM runs", l)
	}
	if _, err := vm.PlugNIC(t.Context(), hypervisor.NIC{ID: "eth0"}); !errors.Is(err, boom) {
		t.Errorf("PlugNIC() = %v, want boom", err)
	}
	if _, err := vm.PlugNIC(t.Context(), hypervisor.NIC{ID: "eth0"}); err != nil {
		t.Errorf("PlugNIC() = %v, want nil", err)
	}
}
