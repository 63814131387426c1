// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/vmm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestMain is also the launcher and the VMM: the test binary plays all three.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(125)
	}
	if clhtest.IsVMM() {
		clhtest.Main()
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// file makes an open file with a unique name.
func file(t testing.TB, name string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// plain is a VM with a bit of everything.
func plain(t testing.TB) hypervisor.VMSpec {
	t.Helper()
	return hypervisor.VMSpec{
		ID: "pod-1", CPU: hypervisor.CPU{Count: 2}, MemoryMiB: 512, BlockBus: hypervisor.BlockBlk,
		BootTimeout: 20 * time.Second,
		Boot: hypervisor.Boot{
			Kernel: file(t, "vmlinux"), Initrd: file(t, "initrd.img"),
			Cmdline: "console=ttyS0 quiet",
		},
		Blocks: []hypervisor.Block{
			{ID: "layer-0", File: file(t, "layer-0"), ReadOnly: true},
			{ID: "scratch-a-long-name", File: file(t, "scratch")},
		},
		NICs: []hypervisor.NIC{{
			ID: "eth0", MAC: "02:00:00:00:00:01", Tap: []*os.File{file(t, "tap0"), file(t, "tap1")},
			MTU: 1450,
		}},
	}
}

// snp is a confidential VM with a kernel beside its firmware.
func snp(t testing.TB) hypervisor.VMSpec {
	t.Helper()
	s := plain(t)
	s.TEE, s.Boot.Firmware = hypervisor.TEESNP, file(t, "firmware.igvm")
	s.SNP = &hypervisor.SNP{Policy: 0x30000, HostData: [32]byte{1, 2, 0xff}}
	return s
}

// dir makes a directory with a path short enough for sockets.
func dir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "clh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(d)
		if err != nil {
			t.Error(err)
		}
		for _, e := range left {
			t.Errorf("left behind: %s", e.Name())
		}
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// harness is a fake VMM and a driver for it.
type harness struct {
	vmm    *clhtest.VMM
	driver *Driver
}

func newHarness(t testing.TB, c clhtest.Config, opts Options) *harness {
	t.Helper()
	h := &harness{vmm: clhtest.New(t, c)}
	opts.Path = h.vmm.Path
	h.driver = New(opts)
	h.driver.opts.KVM = func() error { return nil }
	h.driver.landlockABI = func() int { return 4 }
	return h
}

// launch launches a VM in a real process. It ends with the test.
func (h *harness) launch(t testing.TB, spec hypervisor.VMSpec) (*machine, error) {
	t.Helper()
	return h.launchIn(t, spec, launch.Options{}, dir(t))
}

// jailed are the options of a process as package virtcontainers/host launches it.
func jailed(dir string, kept ...string) launch.Options {
	return launch.Options{Jail: &jail.Options{
		User: testUser, Processes: testProcesses, Disks: true, Devices: []string{"/dev/kvm"},
		Kept: append(kept, dir),
	}}
}

const (
	testUser      = 1_900_077_775
	testProcesses = 128 + 2 // as virtcontainers has it for one vCPU
)

func (h *harness) launchIn(t testing.TB, spec hypervisor.VMSpec, opts launch.Options, dir string) (*machine, error) {
	t.Helper()
	proc, err := launch.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := begun(t, h.driver, spec.ID, proc, dir).Launch(t.Context(), spec)
	if err != nil {
		select {
		case <-proc.Done():
		default:
			t.Error("the process lives on after a failed launch")
		}
		return nil, err
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := vm.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return vm.(*machine), nil
}

// begun is a VM that waits in a process.
func begun(t testing.TB, d *Driver, id string, p hypervisor.Process, dir string) hypervisor.Pending {
	t.Helper()
	fork := func(context.Context, hypervisor.Place) (hypervisor.Process, error) { return p, nil }
	pending, err := vmm.NewDriver(d, fork).Begin(t.Context(), hypervisor.Place{ID: id, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return pending
}

// up launches a VM that must come up.
func up(t testing.TB, c clhtest.Config, spec hypervisor.VMSpec) (*machine, *clhtest.VMM) {
	t.Helper()
	h := newHarness(t, c, Options{})
	m, err := h.launch(t, spec)
	if err != nil {
		t.Fatal(err)
	}
	return m, h.vmm
}
