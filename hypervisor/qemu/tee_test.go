// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
)

// driverFor is the driver as the shim makes it, on a host that claims to have KVM.
func driverFor(t *testing.T, path string) *Driver {
	t.Helper()
	d := New(Options{Path: path, Precheck: bootfiles.Precheck(configs.TypeQEMU)})
	d.kvmUsable = func() error { return nil }
	return d
}

// unlaunched is a process that must not become a VMM.
type unlaunched struct {
	t    *testing.T
	done chan struct{}
}

func (u *unlaunched) PID() int { return 1 << 30 }
func (u *unlaunched) Exec(_ context.Context, argv, _ []string, _ []*os.File) error {
	u.t.Errorf("it was launched: %q", argv)
	return errors.New("no")
}
func (u *unlaunched) Done() <-chan struct{} { return u.done }
func (u *unlaunched) ExitStatus() string    { return "signal: killed" }
func (u *unlaunched) Stderr() string        { return "" }
func (u *unlaunched) Kill() error           { close(u.done); return nil }

// TestWhatCannotBeTrustedIsRefusedBeforeLaunch goes through the driver as the shim uses it, with real binaries.
func TestWhatCannotBeTrustedIsRefusedBeforeLaunch(t *testing.T) {
	const size = 128 << 10
	image := func(change func(*ovmftest.Layout)) *os.File {
		l := ovmftest.Layout{
			Size: size, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00, SEV: ovmftest.Sections(),
			TDX: ovmftest.TDXSections(size),
		}
		change(&l)
		return tempFile(t, ovmftest.Build(l))
	}
	with := func(s hypervisor.VMSpec, change func(*hypervisor.VMSpec)) hypervisor.VMSpec {
		s.Boot.Firmware = image(func(*ovmftest.Layout) {})
		change(&s)
		return s
	}
	snp := func(change func(*hypervisor.VMSpec)) hypervisor.VMSpec { return with(snpSpec(t), change) }
	tdx := func(change func(*hypervisor.VMSpec)) hypervisor.VMSpec { return with(tdxSpec(t), change) }
	fw := func(change func(*ovmftest.Layout)) hypervisor.VMSpec {
		return snp(func(s *hypervisor.VMSpec) { s.Boot.Firmware = image(change) })
	}
	same := func(*hypervisor.VMSpec) {}
	tests := []struct {
		name, qemu string
		need       testvm.Cap
		spec       hypervisor.VMSpec
		want       string
	}{
		{
			"TDX on QEMU 10.0", "qemu-10.0", testvm.QEMU100, tdx(same),
			"QEMU 10.0.2, has no object tdx-guest: platform tdx needs QEMU 10.1 or later",
		},
		{
			"TDX on Debian 12's QEMU", "system", testvm.QEMU, tdx(same),
			"has no object tdx-guest: platform tdx needs QEMU 10.1 or later",
		},
		{
			"SNP on Debian 12's QEMU", "system", testvm.QEMU, snp(same),
			"has no object sev-snp-guest: platform snp needs QEMU 9.1 or later",
		},
		{
			"the host's processor where one digest is promised", "qemu-11.1", testvm.QEMU111,
			snp(func(s *hypervisor.VMSpec) { s.CPU.Model = "host" }), "SNP measures the model, so name one",
		},
		{"no model where one digest is promised", "qemu-11.1", testvm.QEMU111, snp(func(s *hypervisor.VMSpec) {
			s.CPU.Model = ""
		}), "SNP measures the model, so name one"},
		{
			"firmware without a hash area", "qemu-11.1", testvm.QEMU111, fw(func(l *ovmftest.Layout) { l.HashBase = 0 }),
			"kernel-hash area",
		},
		{"a generic OVMF of 2025.02", "qemu-11.1", testvm.QEMU111, fw(func(l *ovmftest.Layout) {
			l.SEV = ovmftest.Sections()[:6]
		}), "a kernel would boot unmeasured"},
		{"a section of no size", "qemu-11.1", testvm.QEMU111, fw(func(l *ovmftest.Layout) {
			l.SEV = append(ovmftest.Sections(), ovmf.Section{GPA: 0x900000, Type: ovmf.SecMem})
		}), "is empty, which QEMU refuses"},
		{"kernel hashes without a kernel", "qemu-11.1", testvm.QEMU111, snp(func(s *hypervisor.VMSpec) {
			s.Boot.Kernel = nil
		}), "no kernel"},
		{"a policy that allows debugging", "qemu-11.1", testvm.QEMU111, snp(func(s *hypervisor.VMSpec) {
			s.SNP.Policy |= 1 << 19
		}), "allows debugging"},
		{
			"no firmware", "qemu-11.1", testvm.QEMU111, tdx(func(s *hypervisor.VMSpec) { s.Boot.Firmware = nil }),
			"without it nothing is measured",
		},
		{"firmware for something else", "qemu-11.1", testvm.QEMU111, tdx(func(s *hypervisor.VMSpec) {
			s.Boot.Firmware = image(func(l *ovmftest.Layout) { l.TDX = nil })
		}), "TDX metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := driverFor(t, binaryPath(t, tt.qemu, tt.need))
			p := &unlaunched{t: t, done: make(chan struct{})}
			_, err := launchIn(t, d, tt.spec, p)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errdefs.IsInvalidArgument(err) &&
				!errdefs.IsFailedPrecondition(err) {
				t.Errorf("Launch() = %v, want a refusal with %q", err, tt.want)
			}
			select {
			case <-p.done:
			default:
				t.Error("the process is still waiting")
			}
		})
	}
	// what is left then is accepted
	for name, spec := range map[string]hypervisor.VMSpec{"SNP": snp(same), "TDX": tdx(same)} {
		if _, err := driverFor(t, binaryPath(t, "qemu-11.1", testvm.QEMU111)).resolve(t.Context(), spec); err != nil {
			t.Errorf("%s on QEMU 11.1: %v", name, err)
		}
	}
}

// stripped is a process that starts a confidential VM's command line without what needs the hardware: the TEE's
// object, KVM, the firmware.
type stripped struct {
	*launch.Process
	t *testing.T
}

func (s stripped) Exec(ctx context.Context, argv, env []string, files []*os.File) error {
	var out []string
	edits := 0
	for i := 0; i < len(argv); i++ {
		switch {
		case argv[i] == "-object" && strings.Contains(argv[i+1], "tee0"), argv[i] == "-bios":
			i++
			edits++
		case argv[i] == "-accel":
			out = append(out, "-accel", "tcg,thread=multi,tb-size=128")
			i++
			edits++
		case argv[i] == "-machine":
			without := strings.Replace(argv[i+1], ",confidential-guest-support=tee0", "", 1)
			if without != argv[i+1] {
				edits++
			}
			out = append(out, "-machine", without)
			i++
		case strings.HasPrefix(argv[i], "host,"):
			out = append(out, "max,erms=off,fsrm=off")
		default:
			out = append(out, argv[i])
		}
	}
	if edits != 4 {
		s.t.Errorf("%d edits, want 4: object, machine, accelerator, firmware in %q", edits, argv)
	}
	return s.Process.Exec(ctx, out, env, files)
}

// TestTheArgumentsOfATEEBootWithoutIt boots the guest with the command lines of SNP and TDX, only without the TEE,
// and plugs in a disk: with memory in a memfd, virtio behind the platform's DMA, and the processor that is measured.
func TestTheArgumentsOfATEEBootWithoutIt(t *testing.T) {
	for _, b := range binaries {
		for _, tee := range b.tees {
			t.Run(b.name+"/"+string(tee), func(t *testing.T) {
				path := binaryPath(t, b.name, b.need)
				spec := vmSpec(t)
				spec.TEE, spec.HotplugPorts = tee, 2
				spec.Boot.Firmware = firmware(t, 1<<20)
				spec.Blocks = []hypervisor.Block{{
					ID: "cold", File: readOnly(t, []byte(strings.Repeat("cold", 1<<18))),
					ReadOnly: true,
				}}
				if tee == hypervisor.TEESNP {
					spec.CPU.Model, spec.SNP = "EPYC-v4", &hypervisor.SNP{Policy: 0x30000}
				} else {
					spec.TDX = &hypervisor.TDX{}
				}
				d := driverFor(t, path)
				d.opts.Precheck = nil // the firmware is not looked at
				vm := bootWith(t, d, spec, stripped{launched(t), t})
				tell(t, vm, "load")
				addr, _ := vm.BlockAddress("cold")
				checkDisk(t, vm, addr, []byte(strings.Repeat("cold", 1<<18)))
				hot := []byte(strings.Repeat("hot!", 1<<18))
				addr, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: "hot", File: readOnly(t, hot), ReadOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				checkDisk(t, vm, addr, hot)
			})
		}
	}
}

// TestThePlainPlatformBootsOnEveryQEMU boots the plain platform, with a disk and an interface from boot and one of
// each plugged in while it runs.
func TestThePlainPlatformBootsOnEveryQEMU(t *testing.T) {
	for _, b := range binaries[1:] { // the system's own is what all other tests use
		t.Run(b.name, func(t *testing.T) {
			testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap)
			path := binaryPath(t, b.name, b.need)
			spec := vmSpec(t)
			spec.HotplugPorts, spec.CPU.Count = 2, 2
			spec.NICs = []hypervisor.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Tap: []*os.File{tap(t)}, MTU: 1400}}
			vm := bootWith(t, New(Options{Path: path}), spec, launched(t))
			tell(t, vm, "load")
			hot := []byte(strings.Repeat("hot!", 1<<18))
			longest := strings.Repeat("h", 20)
			addr, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: longest, File: readOnly(t, hot), ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			checkDisk(t, vm, addr, hot)
			nic, err := vm.PlugNIC(t.Context(), hypervisor.NIC{ID: "eth1", MAC: "02:00:00:00:00:02", Tap: []*os.File{tap(t)}})
			if err != nil {
				t.Fatal(err)
			}
			tell(t, vm, "net "+nic)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := errors.Join(vm.UnplugBlock(ctx, longest), vm.UnplugNIC(ctx, "eth1")); err != nil {
				t.Error(err)
			}
		})
	}
}

// bootWith launches a VM with a driver and stops it after the test.
func bootWith(t *testing.T, d *Driver, spec hypervisor.VMSpec, p hypervisor.Process) *machine {
	t.Helper()
	vm, err := launchIn(t, d, spec, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := vm.Stop(ctx); err != nil {
			t.Errorf("Stop() = %v", err)
		}
	})
	return vm.(*machine)
}
