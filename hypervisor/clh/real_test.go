// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
	"github.com/coco-shim/coco/hypervisor/hypervisortest"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
)

// The tests of this file run the driver with a real Cloud Hypervisor, whose path is in COCO_CLH. The guest
// is testdata/pvh: it needs no Linux, so it also boots where KVM is nested too thinly for one.

// realGuest builds the guest. C and assembler, since it begins without a stack.
func realGuest(t *testing.T) (vmm, kernel string) {
	t.Helper()
	vmm = os.Getenv("COCO_CLH")
	if vmm == "" {
		t.Skip("COCO_CLH does not name a Cloud Hypervisor")
	}
	kernel = filepath.Join(t.TempDir(), "guest")
	cmd := exec.CommandContext(t.Context(), "gcc", "-O1", "-nostdlib", "-static", "-ffreestanding", "-fno-pic", "-no-pie",
		"-mno-sse", "-Wl,-z,noexecstack",
		"-fno-stack-protector", "-Wl,--build-id=none", "-T", "link.ld", "-o", kernel, "start.S", "guest.c")
	cmd.Dir = "testdata/pvh"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	return vmm, kernel
}

// realVM launches the guest with a command line that says what it does.
func realVM(t *testing.T, action string) *machine {
	t.Helper()
	m, err := launchReal(t, action, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func launchReal(t *testing.T, action string, opts Options) (*machine, error) {
	t.Helper()
	path, kernel := realGuest(t)
	f, err := os.Open(kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	spec := hypervisor.VMSpec{
		ID: "real", CPU: hypervisor.CPU{Count: 1}, MemoryMiB: 128, BlockBus: hypervisor.BlockBlk,
		BootTimeout: 30 * time.Second,
		Boot:        hypervisor.Boot{Kernel: f, Cmdline: "act=" + action},
		Blocks: []hypervisor.Block{
			{ID: "layer-0", File: sectors(t), ReadOnly: true}, {ID: "initdata", File: inMemory(t), ReadOnly: true},
		},
		NICs: []hypervisor.NIC{{
			ID: "eth0", MAC: "02:00:00:00:00:01", Tap: []*os.File{hypervisortest.Tap(t)}, MTU: 1500,
		}},
	}
	d := dir(t)
	proc, err := launch.Start(t.Context(), jailed(d))
	if err != nil {
		t.Fatal(err)
	}
	// Whether Linux boots on this KVM does not matter here.
	opts.Path, opts.KVM = path, func() error { return nil }
	vm, err := begun(t, New(opts), spec.ID, proc, d).Launch(t.Context(), spec)
	if err != nil {
		return nil, err
	}
	m := vm.(*machine)
	t.Cleanup(func() {
		if err := m.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return m, nil
}

// inMemory is a disk as initdata is one.
func inMemory(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("initdata", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "initdata")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	return f
}

func sectors(t *testing.T) *os.File {
	t.Helper()
	f := file(t, "disk")
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRealContract(t *testing.T) {
	hypervisortest.Contract(t, "hello\n", func(t *testing.T) hypervisor.VM {
		t.Helper()
		return realVM(t, "serve")
	})
}

func TestRealDeathsAreExplained(t *testing.T) {
	for action, want := range map[string]string{
		"off": "switched itself off", "reset": "crashed or restarted itself", "panic": "the guest's kernel panicked",
		// the latter where KVM is nested thinly
		"triple": "crashed or restarted itself|could not go on with a virtual processor",
	} {
		t.Run(action, func(t *testing.T) {
			m, err := launchReal(t, action, Options{})
			if err == nil { // else it was dead before its launch was over
				<-m.Done()
				err = m.Err()
			}
			var dead *hypervisor.DeadError
			if !errors.As(err, &dead) || !regexp.MustCompile(want).MatchString(dead.Reason) ||
				strings.Contains(dead.Stderr, "WARN") {
				t.Errorf("the end = %v, want %q", err, want)
			}
		})
	}
}

// The imitation's answers are those of this release.
func TestRealSmallCalls(t *testing.T) {
	m := realVM(t, "serve")
	if _, err := m.Dial(t.Context(), contract.PortAgent); err != nil {
		t.Fatal(err)
	}
	if a, ok := m.BlockAddress("layer-0"); !ok || a.Source != "01" {
		t.Errorf("BlockAddress() = %v, %v, want the first slot after the host bridge", a, ok)
	}
	f := sectors(t)
	if _, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "written", File: f}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PlugBlock(t.Context(), hypervisor.Block{ID: "again", File: f}); err == nil ||
		!strings.Contains(err.Error(), "lock") {
		t.Errorf("PlugBlock() of a disk that is written elsewhere = %v, want that it is locked", err)
	}
	if err := m.UnplugBlock(t.Context(), "written"); err != nil {
		t.Error(err)
	}
	if err := m.api.put(t.Context(), "vm.remove-device", map[string]string{"id": "nobody"}, nil); !refused(err) {
		t.Errorf("vm.remove-device of nothing = %v, want a refusal", err)
	}
}

// The VMM has no privilege, and takes disks of every kind, which belong to root.
func TestRealJail(t *testing.T) {
	testvm.Need(t, testvm.Root)
	for _, landlock := range []bool{false, true} {
		t.Run(fmt.Sprintf("landlock=%v", landlock), func(t *testing.T) {
			staging := filepath.Join(t.TempDir(), "plug")
			m, err := launchReal(t, "serve", Options{Landlock: landlock, Staging: staging})
			if err != nil {
				t.Fatal(err)
			}
			if m.par.Landlock != landlock {
				t.Skip("this kernel has no Landlock that the VMM can use")
			}
			inJail(t, m.Proc.(*launch.Process), os.Getenv("COCO_CLH"), []string{m.par.Dir, "/disks"})
			if _, err := m.Dial(t.Context(), contract.PortAgent); err != nil {
				t.Fatal(err)
			}
			plugEveryKind(t, m, filepath.Dir(staging))
			inJail(t, m.Proc.(*launch.Process), os.Getenv("COCO_CLH"), []string{m.par.Dir, "/disks"})
		})
	}
}

// refusal is a request that the VMM refuses while a VM runs.
type refusal struct {
	name, call string
	in         any
}

func refusals(path string, vm clhapi.VmConfig) []refusal {
	disk := func(id, path string) clhapi.DiskConfig {
		return clhapi.DiskConfig{Id: id, Path: path, ImageType: clhapi.Raw, Readonly: true}
	}
	net := clhapi.NetConfig{Id: "n", Mac: "02:00:00:00:00:07", NumQueues: 2, Mtu: 1279}
	return []refusal{
		{"an id with leading underscores", "vm.add-disk", disk("__disk", path)},
		{"an id that is taken", "vm.add-disk", disk("disk-layer-0", path)},
		{"a file that is not there", "vm.add-disk", disk("file", "/nonexistent")},
		{"a small MTU", "vm.add-net", net},
		{"a device that is not there", "vm.remove-device", clhapi.VmRemoveDevice{Id: "nobody"}},
		{"a device without a name", "vm.remove-device", clhapi.VmRemoveDevice{}},
		{"a second VM", "vm.create", vm},
		{"a second boot", "vm.boot", nil},
	}
}

// The imitation refuses with the status of the release that it imitates.
func TestRealRefusesAsTheImitation(t *testing.T) {
	real := realVM(t, "serve")
	var v clhapi.VmmPingResponse
	if err := real.api.get(t.Context(), "vmm.ping", &v); err != nil {
		t.Fatal(err)
	}
	release, err := majorOf(v.Version)
	if err != nil {
		t.Fatal(err)
	}
	imitation, _ := up(t, clhtest.Config{Release: release}, plain(t))
	ask := func(m *machine, r refusal) (int, string) {
		var refused *apiError
		if err := m.api.put(t.Context(), r.call, r.in, nil); !errors.As(err, &refused) {
			return 0, fmt.Sprint(err)
		}
		return refused.status, refused.reason
	}
	_, config := Build(imitation.Spec, imitation.par)
	for _, r := range refusals(sectors(t).Name(), config) {
		want, says := ask(real, r)
		got, said := ask(imitation, r)
		t.Logf("%s: %d %s", r.name, want, says)
		if got != want || want == 0 {
			t.Errorf("%s: release %d answers %d (%s), the imitation %d (%s)", r.name, release, want, says, got, said)
		}
	}
	for _, m := range []*machine{real, imitation} { // still there
		if _, err := m.Dial(t.Context(), contract.PortAgent); err != nil {
			t.Error(err)
		}
	}
}

// The bus takes as many devices as the driver says.
func TestRealFullBus(t *testing.T) {
	m := realVM(t, "serve")
	if _, err := m.Dial(t.Context(), contract.PortAgent); err != nil {
		t.Fatal(err)
	}
	disk := func(i int) hypervisor.Block {
		return hypervisor.Block{ID: fmt.Sprintf("disk-%d", i), File: sectors(t)}
	}
	for i := len(m.Spec.Blocks) + len(m.Spec.NICs); i < maxDevices; i++ {
		if _, err := m.PlugBlock(t.Context(), disk(i)); err != nil {
			t.Fatalf("PlugBlock() of device %d of %d = %v", i+1, maxDevices, err)
		}
	}
	if _, err := m.PlugBlock(t.Context(), disk(maxDevices)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("PlugBlock() of one more = %v, want a failed precondition", err)
	}
	err := m.withPath(disk(maxDevices), func(path string) error { // nor does the VMM take it
		return m.api.put(t.Context(), "vm.add-disk", diskConfig(disk(maxDevices), path), nil)
	})
	if !refused(err) {
		t.Errorf("vm.add-disk of one more = %v, want a refusal", err)
	}
	t.Log(err)
}
