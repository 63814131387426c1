// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
)

// calls returns the requests of one call.
func calls(vmm *clhtest.VMM, call string) []clhtest.Request {
	return slices.DeleteFunc(vmm.Requests(), func(r clhtest.Request) bool { return r.Call != call })
}

// A disk is the file that was opened, not another one at its path by now.
func TestPluggedDiskIsTheOpenedFile(t *testing.T) {
	m, vmm := up(t, clhtest.Config{}, plain(t))
	f := file(t, "disk")
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Name(), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "late", File: f})
	if err != nil || addr.Source != "07" { // after two disks, one interface, entropy, vsock and pvpanic
		t.Fatalf("PlugBlock() = %v, %v, want slot 07", addr, err)
	}
	r := calls(vmm, "vm.add-disk")
	if len(r) != 1 || len(r[0].Opened) != 1 || r[0].Opened[0] != clhtest.IDOf(t, f) {
		t.Errorf("the VMM opened %v, want %v", r, clhtest.IDOf(t, f))
	}
}

func TestPluggedInterfaceComesWithItsTaps(t *testing.T) {
	m, vmm := up(t, clhtest.Config{}, plain(t))
	taps := []*os.File{file(t, "a"), file(t, "b")}
	path, err := m.PlugNIC(t.Context(), hypervisor.NIC{ID: "eth1", MAC: "02:00:00:00:00:02", Tap: taps})
	if err != nil || path != "07" {
		t.Fatalf("PlugNIC() = %q, %v", path, err)
	}
	r := calls(vmm, "vm.add-net")
	if want := []clhtest.FileID{clhtest.IDOf(t, taps[0]), clhtest.IDOf(t, taps[1])}; !slices.Equal(r[1].Files, want) {
		t.Errorf("the VMM got %v, want %v", r[1].Files, want)
	}
	if _, err := m.PlugNIC(t.Context(), hypervisor.NIC{
		ID: "eth2", MAC: "02:00:00:00:00:03",
		Tap: append(taps, file(t, "c")),
	}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("PlugNIC() with more queues than vCPUs = %v", err)
	}
}

func TestTheBusIsFullAtSomePoint(t *testing.T) {
	s := plain(t)
	s.Blocks, s.NICs = nil, nil
	m, _ := up(t, clhtest.Config{}, s)
	f := file(t, "disk")
	for i := range maxDevices {
		if _, err := m.PlugBlock(t.Context(), hypervisor.Block{
			ID: fmt.Sprintf("d%d", i), File: f,
			ReadOnly: true,
		}); err != nil {
			t.Fatalf("disk %d: %v", i, err)
		}
	}
	_, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "one-more", File: f})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "all 28 places on the PCI bus are taken") {
		t.Errorf("PlugBlock() = %v", err)
	}
}

// After any failure the id is free again, and the VMM has no device that the driver does not know.
func TestFailedPlugsLeaveNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		config  clhtest.Config
		removes bool // the driver cannot know whether the device is there
		want    string
	}{
		{
			"refused",
			clhtest.Config{ErrorOn: "vm.add-disk", ErrorStatus: 500, ErrorBody: `["Error from API","locked"]`},
			false,
			"vm.add-disk: Error from API: locked",
		},
		{
			"there already",
			clhtest.Config{ErrorOn: "vm.add-disk", ErrorStatus: 409},
			false,
			"no reason was given (status 409)",
		},
		{"half an answer", clhtest.Config{HalfOn: "vm.add-disk", AfterDone: true}, true, "in the middle of the answer"},
		{"no answer", clhtest.Config{HangOn: "vm.add-disk", AfterDone: true}, true, "deadline exceeded"},
		{"garbage", clhtest.Config{GarbageOn: "vm.add-disk"}, true, "not an HTTP answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, vmm := up(t, tt.config, plain(t))
			b := hypervisor.Block{ID: "late", File: file(t, "disk")}
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := m.PlugBlock(ctx, b); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("PlugBlock() = %v, want %q", err, tt.want)
				}
				if _, ok := m.BlockAddress("late"); ok {
					t.Error("the disk is known after a failed PlugBlock()")
				}
			}
			if n := len(calls(vmm, "vm.remove-device")); (n > 0) != tt.removes {
				t.Errorf("%d attempts to remove it, want some: %v", n, tt.removes)
			}
		})
	}
}

func TestUnplugWaitsForTheGuest(t *testing.T) {
	t.Run("which keeps it", func(t *testing.T) {
		m, vmm := up(t, clhtest.Config{KeepDevices: true}, plain(t))
		for range 2 {
			unplugInVain(t, m, "layer-0")
		}
		if _, ok := m.BlockAddress("layer-0"); !ok {
			t.Error("the disk is forgotten while it is there")
		}
		if n := len(calls(vmm, "vm.remove-device")); n < 2 {
			t.Errorf("asked %d times", n)
		}
	})
	t.Run("whose answer gets lost", func(t *testing.T) {
		m, _ := up(t, clhtest.Config{SilentEject: true}, plain(t))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := m.UnplugBlock(ctx, "layer-0"); err != nil {
			t.Errorf("UnplugBlock() = %v", err)
		}
	})
	t.Run("which is late", func(t *testing.T) {
		for _, release := range []int{51, 53, 54} {
			t.Run(fmt.Sprintf("release %d", release), func(t *testing.T) { lateRelease(t, release) })
		}
	})
	t.Run("which dies", func(t *testing.T) {
		m, _ := up(t, clhtest.Config{CrashOn: "vm.remove-device"}, plain(t))
		var dead *hypervisor.DeadError
		if err := m.UnplugNIC(t.Context(), "eth0"); !errors.As(err, &dead) {
			t.Errorf("UnplugNIC() = %v", err)
		}
	})
}

// A disk that the guest releases after the unplug has timed out is gone all the same: its id is free, and
// unplugging it again is no error, with any release's status for that.
func lateRelease(t *testing.T, release int) {
	t.Helper()
	m, vmm := up(t, clhtest.Config{Release: release, EjectOn: "vmm.ping"}, plain(t))
	for _, id := range []string{"layer-0", "scratch-a-long-name"} {
		unplugInVain(t, m, id)
	}
	if err := m.api.get(t.Context(), "vmm.ping", nil); err != nil { // now the guest lets go of both
		t.Fatal(err)
	}
	if _, err := m.PlugBlock(t.Context(), hypervisor.Block{
		ID: "layer-0", File: file(t, "other"),
		ReadOnly: true,
	}); err != nil {
		t.Errorf("PlugBlock() of an id that was released late = %v", err)
	}
	if err := m.UnplugBlock(t.Context(), "scratch-a-long-name"); err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("UnplugBlock() of what was released late = %v", err)
	}
	if n := len(calls(vmm, "vm.add-disk")); n != 1 {
		t.Errorf("%d disks were added, want 1", n)
	}
}

// unplugInVain asks the guest for a disk that it keeps, until the VMM has taken the request: on a busy
// machine that lasts.
func unplugInVain(t *testing.T, m *machine, id string) {
	t.Helper()
	for patience := 100 * time.Millisecond; ; patience *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := m.UnplugBlock(ctx, id)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("UnplugBlock() = %v, want that there was no time", err)
		}
		if strings.Contains(err.Error(), "has not let go") {
			return
		}
	}
}

// The VMM locks the files of disks: one that is written is in one place at a time.
func TestDisksAreLocked(t *testing.T) {
	m, _ := up(t, clhtest.Config{}, plain(t))
	f := file(t, "disk")
	if _, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "a", File: f}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "b", File: f}); err == nil ||
		!strings.Contains(err.Error(), "locked") {
		t.Errorf("PlugBlock() of a disk that is written elsewhere = %v", err)
	}
	if err := m.UnplugBlock(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b", "c"} {
		if _, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: id, File: f, ReadOnly: true}); err != nil {
			t.Errorf("PlugBlock() of a disk that is only read = %v", err)
		}
	}
}

// The imitation refuses the same requests as the real VMM, with the text and the status of each release.
func TestImitationRefuses(t *testing.T) {
	status := map[int]map[string]int{
		51: {"absent": 500, "unknown": 500, "taken": 500, "malformed": 500},
		53: {"absent": 404, "unknown": 500, "taken": 500, "malformed": 500},
		54: {"absent": 404, "unknown": 404, "taken": 409, "malformed": 400},
	}
	for release, want := range status {
		m, _ := up(t, clhtest.Config{Release: release}, plain(t))
		disk := clhapi.DiskConfig{Path: file(t, "x").Name(), ImageType: clhapi.Raw}
		named := func(id, serial string) clhapi.DiskConfig {
			d := disk
			d.Id, d.Serial = id, serial
			return d
		}
		for _, tt := range []struct {
			name, call, class string
			in                any
		}{
			{"a leading underscore pair", "vm.add-disk", "malformed", named("__disk", "")},
			{"an id that is taken", "vm.add-disk", "taken", named("disk-layer-0", "")},
			{"a small MTU", "vm.add-net", "malformed", clhapi.NetConfig{
				Id: "n", Mac: "02:00:00:00:00:07",
				NumQueues: 2, Mtu: 1279,
			}},
			{"a device that is not there", "vm.remove-device", "unknown", clhapi.VmRemoveDevice{Id: "nobody"}},
		} {
			err := m.api.put(t.Context(), tt.call, tt.in, nil)
			var r *apiError
			if !errors.As(err, &r) || r.status != want[tt.class] {
				t.Errorf("release %d, %s: %v, want status %d", release, tt.name, err, want[tt.class])
			}
		}
	}
}

func TestLandlock(t *testing.T) {
	layers := t.TempDir()
	staging := filepath.Join(layers, "not/yet")
	open := func(name string) *os.File {
		path := filepath.Join(layers, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	h := newHarness(t, clhtest.Config{}, Options{Landlock: true, Staging: staging})
	m, err := h.launch(t, plain(t))
	if err != nil {
		t.Fatal(err)
	}
	gone := open("gone")
	if err := os.Remove(gone.Name()); err != nil {
		t.Fatal(err)
	}
	// A layer that was made a moment ago: the file got its name after it was opened.
	made, err := os.OpenFile(layers, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", made.Fd()), unix.AT_FDCWD,
		filepath.Join(layers, "made"), unix.AT_SYMLINK_FOLLOW); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := os.Open("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	for _, tt := range []struct {
		name string
		b    hypervisor.Block
		want string
	}{
		{"a layer", hypervisor.Block{ID: "a", File: open("a"), ReadOnly: true}, ""},
		{"a new layer", hypervisor.Block{ID: "made", File: made, ReadOnly: true}, ""},
		{"to be written", hypervisor.Block{ID: "b", File: open("b")}, ""},
		{"elsewhere", hypervisor.Block{ID: "c", File: elsewhere, ReadOnly: true}, "must have a name on the file system of"},
		{"removed", hypervisor.Block{ID: "d", File: gone, ReadOnly: true}, "must have a name on the file system of"},
	} {
		_, err := m.PlugBlock(t.Context(), tt.b)
		if tt.want == "" && err != nil || tt.want != "" &&
			(!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: PlugBlock() = %v, want %q", tt.name, err, tt.want)
		}
		if r := calls(h.vmm, "vm.add-disk"); tt.want == "" && r[len(r)-1].Opened[0] != clhtest.IDOf(t, tt.b.File) {
			t.Errorf("%s: the VMM opened %v", tt.name, r[len(r)-1].Opened)
		}
	}
	if left, err := os.ReadDir(staging); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if r := calls(h.vmm, "vm.create")[0]; !strings.Contains(string(r.Body), `"landlock_enable":true`) {
		t.Errorf("vm.create %s", r.Body)
	}
	stale := filepath.Join(staging, "20200101T000000Z-x")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	confinedMemory(t, staging)
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link of a shim that is gone: %v", err)
	}
	old := newHarness(t, clhtest.Config{}, Options{Landlock: true, Staging: staging})
	old.driver.landlockABI = func() int { return 2 }
	if m, err = old.launch(t, plain(t)); err != nil || m.par.Landlock {
		t.Errorf("on a kernel without Landlock: %v, %v", m, err)
	}
}

// A disk in memory, as initdata is, has no place in the file system that Landlock could allow.
func confinedMemory(t *testing.T, staging string) {
	t.Helper()
	fd, err := unix.MemfdCreate("initdata", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	if _, err := f.WriteString("initdata"); err != nil {
		t.Fatal(err)
	}
	s := plain(t)
	s.Blocks = append(s.Blocks, hypervisor.Block{ID: "initdata", File: f, ReadOnly: true})
	h := newHarness(t, clhtest.Config{}, Options{Landlock: true, Staging: staging})
	if _, err := h.launch(t, s); err != nil {
		t.Fatal(err)
	}
	opened := calls(h.vmm, "vm.boot")[0].Opened
	if n := len(opened); n != 5 || opened[4] == clhtest.IDOf(t, f) || opened[3] != clhtest.IDOf(t, s.Blocks[1].File) {
		t.Errorf("the VMM opened %v, want a copy of what is in memory", opened)
	}
	s.Blocks[2].ReadOnly = false
	if _, err := newHarness(t, clhtest.Config{}, Options{Landlock: true, Staging: staging}).launch(t, s); err == nil ||
		!strings.Contains(err.Error(), "must be read-only") {
		t.Errorf("Launch() with a disk in memory that is written = %v", err)
	}
}
