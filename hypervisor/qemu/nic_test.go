// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/testvm"
)

// tap makes a tap in a network namespace that lives as long as the tap.
func tap(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with its namespace
		fd, err := -1, unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		}
		if err == nil {
			req, _ := unix.NewIfreq("tap0") // the name is short enough
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		ch <- result{fd, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	f := os.NewFile(uintptr(r.fd), "tap")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestInterfacesColdAndHot(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap)
	spec := vmSpec(t)
	spec.HotplugPorts = 2
	spec.NICs = []hypervisor.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Tap: []*os.File{tap(t)}, MTU: 1400}}
	vm, _ := boot(t, spec)
	tell(t, vm, "load")
	start := time.Now()
	path, err := vm.PlugNIC(t.Context(), hypervisor.NIC{ID: "eth1", MAC: "02:00:00:00:00:02", Tap: []*os.File{tap(t)}})
	if err != nil {
		t.Fatal(err)
	}
	_, name := tell(t, vm, "net "+path)
	t.Logf("%s at %s after %v", name, path, time.Since(start))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := vm.UnplugNIC(ctx, "eth1"); err != nil {
		t.Fatal(err)
	}
	tell(t, vm, "gone net/"+name)
}
