// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
)

// EchoPort is the port on which the guests of Contract echo.
const EchoPort = contract.PortAgent

// ClosedPort is one on which nobody listens.
const ClosedPort = 9

// Contract holds a kind of VM against what package hypervisor promises of every VM. launch starts one
// whose guest, once it is up, echoes on EchoPort; it is called for each part anew. greeting is what the
// guest says first. Parts that need a capability which the VM has not are skipped.
func Contract(t *testing.T, greeting string, launch func(t *testing.T) hypervisor.VM) {
	t.Helper()
	for name, part := range map[string]func(*testing.T, hypervisor.VM){
		"Dial":  func(t *testing.T, vm hypervisor.VM) { dialing(t, vm, greeting) },
		"Stop":  func(t *testing.T, vm hypervisor.VM) { stopping(t, vm, greeting) },
		"Block": blocks,
		"NIC":   nics,
	} {
		t.Run(name, func(t *testing.T) {
			vm := launch(t)
			t.Cleanup(func() {
				if err := vm.Stop(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			part(t, vm)
		})
	}
}

// BeginContract holds a driver against what package hypervisor promises of the way to a VM. begin makes the place of a
// VM that spec describes; it is called for each part anew.
func BeginContract(t *testing.T, spec hypervisor.VMSpec, begin func(t *testing.T) hypervisor.Pending) {
	t.Helper()
	for name, part := range map[string]func(*testing.T, hypervisor.Pending, hypervisor.VMSpec){
		"Abort": aborting, "AbortAfterLaunch": abortingLate, "Stop": stoppingEndsThePlace, "Refusal": refusing,
	} {
		t.Run(name, func(t *testing.T) {
			p := begin(t)
			t.Cleanup(func() {
				if err := p.Abort(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			if p.PID() < 0 {
				t.Errorf("PID() = %d", p.PID())
			}
			if err := p.Err(); err != nil {
				t.Errorf("Err() of a place that is there = %v", err)
			}
			part(t, p, spec)
		})
	}
}

func aborting(t *testing.T, p hypervisor.Pending, spec hypervisor.VMSpec) {
	pid := p.PID()
	for range 2 {
		if err := p.Abort(t.Context()); err != nil {
			t.Fatalf("Abort() = %v", err)
		}
	}
	<-p.Done()
	var dead *hypervisor.DeadError
	if !errors.As(p.Err(), &dead) || dead.VM != spec.ID || dead.Phase != hypervisor.PhaseVMM {
		t.Errorf("Err() = %v, want a DeadError of VM %s in phase %s", p.Err(), spec.ID, hypervisor.PhaseVMM)
	}
	if _, err := p.Launch(t.Context(), spec); err == nil {
		t.Error("Launch() after Abort() = nil")
	}
	if p.PID() != pid {
		t.Errorf("PID() = %d after the end, %d before", p.PID(), pid)
	}
}

func abortingLate(t *testing.T, p hypervisor.Pending, spec hypervisor.VMSpec) {
	vm, err := p.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Abort(t.Context()); err != nil {
		t.Fatalf("Abort() = %v", err)
	}
	<-vm.Done()
	var dead *hypervisor.DeadError
	if !errors.As(vm.Err(), &dead) {
		t.Errorf("Err() = %v, want a DeadError", vm.Err())
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Errorf("Stop() of a dead VM = %v", err)
	}
}

func stoppingEndsThePlace(t *testing.T, p hypervisor.Pending, spec hypervisor.VMSpec) {
	vm, err := p.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatalf("Stop() = %v", err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("the place is there after Stop()")
	}
}

// refusing launches another pod's VM in a place.
func refusing(t *testing.T, p hypervisor.Pending, spec hypervisor.VMSpec) {
	spec.ID += "-another"
	if _, err := p.Launch(t.Context(), spec); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Launch() of another VM = %v, want an invalid argument", err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("the place is there after a launch that failed")
	}
}

func echo(t *testing.T, c net.Conn, greeting string) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != greeting {
		t.Fatalf("greeting = %q, %v, want %q", b, err, greeting)
	}
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	b = make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("echo = %q, %v", b, err)
	}
}

func dialing(t *testing.T, vm hypervisor.VM, greeting string) {
	for range 3 {
		c, err := vm.Dial(t.Context(), EchoPort)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, c, greeting)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if c, err := vm.Dial(ctx, ClosedPort); err == nil {
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil { // some learn it from the connection
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a port without a listener answers: %v", err)
		}
		c.Close()
	} else if ctx.Err() != nil {
		t.Errorf("Dial of a port without a listener hangs: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := vm.Dial(ended, EchoPort); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial with an ended context = %v, want context.Canceled", err)
	}
}

func stopping(t *testing.T, vm hypervisor.VM, greeting string) {
	c, err := vm.Dial(t.Context(), EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo(t, c, greeting)
	select {
	case <-vm.Done():
		t.Fatal("Done() is closed while the VM runs")
	default:
	}
	if err := vm.Err(); err != nil {
		t.Errorf("Err() while the VM runs = %v", err)
	}
	for range 2 {
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatalf("Stop() = %v", err)
		}
	}
	<-vm.Done()
	var dead *hypervisor.DeadError
	if !errors.As(vm.Err(), &dead) || dead.VM != vm.ID() || dead.Phase != hypervisor.PhaseRun {
		t.Errorf("Err() = %v, want a DeadError of VM %s in phase %s", vm.Err(), vm.ID(), hypervisor.PhaseRun)
	}
	if _, err := vm.Dial(t.Context(), EchoPort); !errors.As(err, &dead) {
		t.Errorf("Dial() after the end = %v, want a DeadError", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err == nil {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read() from a connection of an ended VM = %v", err)
		}
	}
	if p, ok := vm.(hypervisor.BlockPlugger); ok {
		if _, err := p.PlugBlock(t.Context(), hypervisor.Block{ID: "late", File: image(t), ReadOnly: true}); !errors.As(err,
			&dead) {
			t.Errorf("PlugBlock() after the end = %v, want a DeadError", err)
		}
	}
}

func image(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func blocks(t *testing.T, vm hypervisor.VM) {
	p, ok := vm.(hypervisor.BlockPlugger)
	if !ok {
		t.Skip("not a BlockPlugger")
	}
	f := image(t)
	places := map[hypervisor.BlockAddress]string{}
	for _, id := range []string{"a", "b" + strings.Repeat("x", 19), "c"} {
		addr, err := p.PlugBlock(t.Context(), hypervisor.Block{ID: id, File: f, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if other, taken := places[addr]; taken || addr.Driver == "" || addr.Source == "" {
			t.Errorf("%s is at %v, as is %q", id, addr, other)
		}
		places[addr] = id
		if l, ok := vm.(hypervisor.BlockLocator); ok {
			if got, ok := l.BlockAddress(id); !ok || got != addr {
				t.Errorf("BlockAddress(%s) = %v, %v, want %v", id, got, ok, addr)
			}
		}
	}
	if _, err := p.PlugBlock(t.Context(),
		hypervisor.Block{ID: "a", File: f, ReadOnly: true}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("PlugBlock() of an id that is there = %v, want a failed precondition", err)
	}
	if _, err := p.PlugBlock(t.Context(), hypervisor.Block{ID: "nothing"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("PlugBlock() without a file = %v, want an invalid argument", err)
	}
	for range 2 {
		if err := p.UnplugBlock(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := p.UnplugBlock(t.Context(), "a"); !errdefs.IsNotFound(err) {
			t.Errorf("UnplugBlock() of what is not there = %v, want not found", err)
		}
		if l, ok := vm.(hypervisor.BlockLocator); ok {
			if a, ok := l.BlockAddress("a"); ok {
				t.Errorf("BlockAddress() of what is not there = %v", a)
			}
		}
		if _, err := p.PlugBlock(t.Context(), hypervisor.Block{ID: "a", File: f, ReadOnly: true}); err != nil {
			t.Fatalf("PlugBlock() again = %v", err)
		}
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("the caller's file: %v", err)
	}
}

// Tap makes a tap, which is gone when it is closed. A VMM asks its descriptor for the kernel's features of
// taps, so a file of another kind will not do.
func Tap(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Skipf("no tap can be made here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	req, err := unix.NewIfreq("cocotest%d")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req); errors.Is(err, unix.EPERM) {
		t.Skip("no tap can be made here: CAP_NET_ADMIN is missing")
	} else if err != nil {
		t.Fatal(err)
	}
	return f
}

func nics(t *testing.T, vm hypervisor.VM) {
	p, ok := vm.(hypervisor.NICPlugger)
	if !ok {
		t.Skip("not a NICPlugger")
	}
	n := hypervisor.NIC{ID: "eth9", MAC: "02:00:00:00:00:09", Tap: []*os.File{Tap(t)}, MTU: 1500}
	path, err := p.PlugNIC(t.Context(), n)
	if err != nil || path == "" {
		t.Fatalf("PlugNIC() = %q, %v", path, err)
	}
	if _, err := p.PlugNIC(t.Context(), n); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("PlugNIC() of an id that is there = %v, want a failed precondition", err)
	}
	if err := p.UnplugNIC(t.Context(), n.ID); err != nil {
		t.Fatal(err)
	}
	if err := p.UnplugNIC(t.Context(), n.ID); !errdefs.IsNotFound(err) {
		t.Errorf("UnplugNIC() of what is not there = %v, want not found", err)
	}
}
