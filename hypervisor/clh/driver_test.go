// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
	"github.com/coco-shim/coco/hypervisor/hypervisortest"
	"github.com/coco-shim/coco/hypervisor/launch"
)

func TestContract(t *testing.T) {
	if !clhtest.HaveReference() {
		t.Log("../shared is not there: requests are checked against our own description only")
	}
	for _, release := range []int{51, 53, 54} {
		t.Run(fmt.Sprintf("release %d", release), func(t *testing.T) {
			hypervisortest.Contract(t, clhtest.Greeting, func(t *testing.T) hypervisor.VM {
				t.Helper()
				m, _ := up(t, clhtest.Config{Release: release, GuestDelay: "50ms"}, plain(t))
				return m
			})
		})
	}
}

func TestBeginContract(t *testing.T) {
	hypervisortest.BeginContract(t, plain(t), func(t *testing.T) hypervisor.Pending {
		t.Helper()
		proc, err := launch.Start(t.Context(), launch.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return begun(t, newHarness(t, clhtest.Config{}, Options{}).driver, plain(t).ID, proc, dir(t))
	})
}

// The VMM has, and opens, the very files that the spec names.
func TestLaunchHandsOverWhatTheSpecNames(t *testing.T) {
	for name, spec := range map[string]hypervisor.VMSpec{"plain": plain(t), "snp": snp(t)} {
		t.Run(name, func(t *testing.T) {
			m, vmm := up(t, clhtest.Config{}, spec)
			want := []string{"vmm.ping", "vm.create", "vm.add-net", "vm.boot", "vm.info"}
			if d := cmp.Diff(want, vmm.Calls()); d != "" {
				t.Fatalf("calls (-want +got):\n%s", d)
			}
			var files []clhtest.FileID
			for _, f := range []*os.File{
				spec.Boot.Firmware, spec.Boot.Kernel, spec.Boot.Initrd, spec.Blocks[0].File,
				spec.Blocks[1].File,
			} {
				if f != nil {
					files = append(files, clhtest.IDOf(t, f))
				}
			}
			reqs := vmm.Requests()
			if d := cmp.Diff(files, reqs[3].Opened); d != "" {
				t.Errorf("opened at boot (-want +got):\n%s", d)
			}
			taps := []clhtest.FileID{clhtest.IDOf(t, spec.NICs[0].Tap[0]), clhtest.IDOf(t, spec.NICs[0].Tap[1])}
			if d := cmp.Diff(taps, reqs[2].Files); d != "" {
				t.Errorf("taps (-want +got):\n%s", d)
			}
			// Slot 0 is the host bridge; disks come first.
			for i, want := range []string{"01", "02"} {
				if a, ok := m.BlockAddress(spec.Blocks[i].ID); !ok || a != (hypervisor.BlockAddress{Driver: "blk", Source: want}) {
					t.Errorf("BlockAddress(%s) = %v, %v, want blk %s", spec.Blocks[i].ID, a, ok, want)
				}
			}
		})
	}
}

func TestLaunchRefusesBeforeItStartsAnything(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opts   Options
		change func(*Driver, *hypervisor.VMSpec)
		dir    string
		want   string
	}{
		{
			name: "what Validate refuses", change: func(_ *Driver, s *hypervisor.VMSpec) { s.BlockBus = hypervisor.BlockSCSI },
			want: "virtio-blk only",
		},
		{name: "what the caller refuses", opts: Options{Precheck: func(hypervisor.VMSpec) error {
			return errors.New("not that IGVM file")
		}}, want: "not that IGVM file"},
		{name: "without KVM", change: func(d *Driver, _ *hypervisor.VMSpec) {
			d.opts.KVM = func() error { return errors.New("no /dev/kvm") }
		}, want: "needs KVM: no /dev/kvm"},
		{name: "a long path", dir: "/" + strings.Repeat("d", 100), want: "shorter runtime.state_dir"},
		{name: "no directory", dir: "/nonexistent", want: "API's socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, clhtest.Config{}, tt.opts)
			s := plain(t)
			if tt.change != nil {
				tt.change(h.driver, &s)
			}
			d := tt.dir
			if d == "" {
				d = dir(t)
			}
			proc, err := launch.Start(t.Context(), launch.Options{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = begun(t, h.driver, s.ID, proc, d).Launch(t.Context(), s)
			<-proc.Done()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Launch() = %v, want %q", err, tt.want)
			}
			if len(h.vmm.Requests()) > 0 {
				t.Errorf("the VMM ran: %v", h.vmm.Calls())
			}
		})
	}
	t.Run("no binary", func(t *testing.T) {
		h := newHarness(t, clhtest.Config{}, Options{})
		h.driver.opts.Path = "/nonexistent/cloud-hypervisor"
		if _, err := h.launch(t, plain(t)); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("Launch() = %v", err)
		}
	})
}

func TestLaunchTellsWhatTheVMMLacks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config clhtest.Config
		tee    bool
		want   string
	}{
		{"old", clhtest.Config{Version: "50.0.0"}, false, "Cloud Hypervisor 50: 51 or later is needed"},
		{"too old for SNP", clhtest.Config{Version: "v51.1"}, true, "Cloud Hypervisor 51: 52 or later is needed"},
		{"another thing", clhtest.Config{Version: "dev"}, false, `version is "dev"`},
		{
			"for another hypervisor",
			clhtest.Config{Features: []string{"mshv"}},
			false,
			"was built without kvm: build it with --no-default-features --features kvm",
		},
		{
			"without SNP",
			clhtest.Config{Features: []string{"kvm", "mshv", "io_uring"}},
			true,
			"was built without igvm, sev_snp, fw_cfg",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, tt.config, Options{})
			s := plain(t)
			if tt.tee {
				s = snp(t)
			}
			_, err := h.launch(t, s)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Launch() = %v, want %q", err, tt.want)
			}
		})
	}
}

// Each call of a launch fails in each way, and nothing is left.
func TestLaunchFails(t *testing.T) {
	refusal := `["Error from API","The VM could not do it","disk is locked"]`
	for _, call := range []string{"vmm.ping", "vm.create", "vm.add-net", "vm.boot", "vm.info"} {
		for _, tt := range []struct {
			name   string
			config clhtest.Config
			want   string
		}{
			{"crash", clhtest.Config{CrashOn: call}, "VMM ended: signal: killed"},
			{"exit", clhtest.Config{ExitOn: call}, "VMM says: cloud-hypervisor (fake): thread 'vmm' panicked"},
			{"half an answer", clhtest.Config{HalfOn: call}, "in the middle of the answer"},
			{"garbage", clhtest.Config{GarbageOn: call}, "not an HTTP answer"},
			{
				"error",
				clhtest.Config{ErrorOn: call, ErrorStatus: 500, ErrorBody: refusal},
				call + ": Error from API: The VM could not do it: disk is locked (status 500)",
			},
			{
				"text",
				clhtest.Config{ErrorOn: call, ErrorStatus: 400, ErrorBody: "Bad Request"},
				call + ": Bad Request (status 400)",
			},
			{"error without body", clhtest.Config{ErrorOn: call, ErrorStatus: 404}, call + ": no reason was given (status 404)"},
		} {
			t.Run(call+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				h := newHarness(t, tt.config, Options{})
				_, err := h.launch(t, plain(t))
				var dead *hypervisor.DeadError
				if !errors.As(err, &dead) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Launch() = %v, want a DeadError with %q", err, tt.want)
				}
			})
		}
	}
}

func TestLaunchDoesNotWaitForever(t *testing.T) {
	for _, call := range []string{"vmm.ping", "vm.create", "vm.boot"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, clhtest.Config{HangOn: call}, Options{})
			s := plain(t)
			s.BootTimeout = 300 * time.Millisecond
			proc, err := launch.Start(t.Context(), launch.Options{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			start := time.Now()
			_, err = begun(t, h.driver, s.ID, proc, dir(t)).Launch(ctx, s)
			if err == nil || time.Since(start) > 10*time.Second {
				t.Errorf("Launch() = %v after %v", err, time.Since(start))
			}
			if call != "vmm.ping" && !strings.Contains(err.Error(), "no answer within 300ms") {
				t.Errorf("Launch() = %v, want the reason", err)
			}
		})
	}
}

func TestServersThatTakeNoDescriptorsAreRefused(t *testing.T) {
	h := newHarness(t, clhtest.Config{NoFiles: true}, Options{})
	_, err := h.launch(t, plain(t))
	if err == nil ||
		!strings.Contains(err.Error(), "network interface eth0: vm.add-net: Error from API: descriptors are not supported") {
		t.Errorf("Launch() = %v", err)
	}
}

func TestDevicesElsewhereAreRefused(t *testing.T) {
	h := newHarness(t, clhtest.Config{WrongPlaces: true}, Options{})
	_, err := h.launch(t, plain(t))
	if err == nil || !strings.Contains(err.Error(), "no place on the first PCI bus") {
		t.Errorf("Launch() = %v", err)
	}
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	m, _ := up(t, clhtest.Config{GuestNever: true, GuestSays: "still booting\n"}, plain(t))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := m.Dial(ctx, contract.PortAgent)
	var dead *hypervisor.DeadError
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &dead) || dead.Phase != hypervisor.PhaseKernel ||
		len(dead.Console) != 1 {
		t.Errorf("Dial() = %v, want the phase and the console", err)
	}
}

func TestNonsenseAfterConnect(t *testing.T) {
	m, _ := up(t, clhtest.Config{BadOK: true}, plain(t))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.Dial(ctx, contract.PortAgent); err == nil {
		t.Error("Dial() = nil")
	}
}

func TestStopKillsAVMMThatStays(t *testing.T) {
	for name, c := range map[string]clhtest.Config{"stays": {StayOnQuit: true}, "hangs": {HangOn: "vmm.shutdown"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := up(t, c, plain(t))
			if err := m.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			var dead *hypervisor.DeadError
			if !errors.As(m.Err(), &dead) || dead.Reason != "stopped on request" {
				t.Errorf("Err() = %v", m.Err())
			}
		})
	}
}

// The calls that no VM method needs alone: stop and forget the VM, with the VMM staying.
func TestShutdownAndDelete(t *testing.T) {
	m, _ := up(t, clhtest.Config{}, plain(t))
	for _, tt := range []struct {
		call string
		ok   bool
	}{
		{"vm.create", false},
		{"vm.boot", false},
		{"vm.shutdown", true},
		{"vm.shutdown", false},
		{"vm.delete", true},
		{"vm.delete", true},
		{"vm.boot", false},
	} {
		var in any
		if tt.call == "vm.create" {
			_, in = Build(plain(t), m.par)
		}
		if err := m.api.put(t.Context(), tt.call, in, nil); (err == nil) != tt.ok {
			t.Errorf("%s = %v, want success: %v", tt.call, err, tt.ok)
		}
	}
	if err := m.api.get(t.Context(), "vm.info", nil); !refused(err) {
		t.Errorf("vm.info without a VM = %v, want not found", err)
	}
}

func TestNothingIsOpenAfterTheVM(t *testing.T) {
	count := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	spec := plain(t)
	before := count()
	for _, c := range []clhtest.Config{{}, {ErrorOn: "vm.boot", ErrorStatus: 500}} {
		h := newHarness(t, c, Options{})
		proc, err := launch.Start(t.Context(), launch.Options{})
		if err != nil {
			t.Fatal(err)
		}
		d := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		vm, err := begun(t, h.driver, spec.ID, proc, d).Launch(t.Context(), spec)
		if err == nil {
			err = vm.Stop(t.Context())
		} else if c.ErrorOn != "" {
			err = nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	if after := count(); after > before {
		t.Errorf("%d open files, %d before", after, before)
	}
}
