// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
)

func TestBuildGolden(t *testing.T) {
	par := Params{Binary: "/usr/bin/cloud-hypervisor", Dir: "/run/coco/pod"}
	confined := par
	confined.Landlock, confined.Plugged, confined.NoSeccomp = true, "/var/lib/coco/layers/plug", true
	alone := snp(t)
	alone.Boot.Kernel, alone.Boot.Initrd, alone.Boot.Cmdline, alone.Blocks = nil, nil, "", nil
	for _, tt := range []struct {
		name string
		spec hypervisor.VMSpec
		par  Params
	}{
		{"plain", plain(t), par},
		{"plain-landlock", plain(t), confined},
		{"snp", snp(t), par},
		{"snp-igvm-alone", alone, par},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := Validate(tt.spec); err != nil {
				t.Fatal(err)
			}
			cmd, config := Build(tt.spec, tt.par)
			var nets []clhapi.NetConfig
			for _, n := range tt.spec.NICs {
				nets = append(nets, netConfig(n))
			}
			var names []string
			for _, f := range cmd.Files {
				names = append(names, filepath.Base(f.Name()))
			}
			got, err := json.MarshalIndent(map[string]any{
				"argv": cmd.Argv, "files from 5": names, "vm.create": config,
				"vm.add-net": nets,
			}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", tt.name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got)+"\n", "\n")); d != "" {
				t.Errorf("Build() (-want +got; -update rewrites):\n%s", d)
			}
		})
	}
}

// Values that differ from pod to pod must not be in the measured part: on SNP, payload and number of vCPUs.
func TestMeasuredPartDependsOnNothingElse(t *testing.T) {
	a, b := snp(t), snp(t)
	b.ID, b.MemoryMiB, b.NICs, b.BootTimeout = "another", 4096, nil, time.Hour
	b.Blocks = b.Blocks[:1]
	_, ca := Build(a, Params{Binary: "/a", Dir: "/run/a"})
	_, cb := Build(b, Params{Binary: "/b", Dir: "/run/b"})
	if d := cmp.Diff(ca.Payload, cb.Payload); d != "" {
		t.Errorf("payloads differ:\n%s", d)
	}
	if ca.Cpus != cb.Cpus {
		t.Errorf("vCPUs %v and %v", ca.Cpus, cb.Cpus)
	}
}

func TestValidateSaysWhyNot(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*hypervisor.VMSpec)
		want   string
	}{
		{"id", func(s *hypervisor.VMSpec) { s.ID = "a b" }, `id "a b"`},
		{"machine", func(s *hypervisor.VMSpec) { s.Machine = "q35" }, "has one machine"},
		{"tcg", func(s *hypervisor.VMSpec) { s.Accel = hypervisor.AccelTCG }, "runs on KVM only; use QEMU"},
		{"accelerator", func(s *hypervisor.VMSpec) { s.Accel = "xen" }, `accelerator "xen"`},
		{"no vcpu", func(s *hypervisor.VMSpec) { s.CPU.Count = 0 }, "0 vCPUs"},
		{"many vcpus", func(s *hypervisor.VMSpec) { s.CPU.Count = 255 }, "255 vCPUs"},
		{"model", func(s *hypervisor.VMSpec) { s.CPU.Model = "EPYC-v4" }, "the host's processor"},
		{"little memory", func(s *hypervisor.VMSpec) { s.MemoryMiB = 16 }, "16 MiB"},
		{"endless memory", func(s *hypervisor.VMSpec) { s.MemoryMiB = 1 << 60 }, "MiB of memory"},
		{"no kernel", func(s *hypervisor.VMSpec) { s.Boot.Kernel = nil }, "no kernel"},
		{"firmware", func(s *hypervisor.VMSpec) { s.Boot.Firmware = s.Boot.Kernel }, "would boot the firmware alone"},
		{"long command line", func(s *hypervisor.VMSpec) { s.Boot.Cmdline = strings.Repeat("a", 2048) }, "2048 bytes"},
		{"command line of two lines", func(s *hypervisor.VMSpec) { s.Boot.Cmdline = "a\nb" }, "newline"},
		{"no time", func(s *hypervisor.VMSpec) { s.BootTimeout = 0 }, "no boot timeout"},
		{"ports", func(s *hypervisor.VMSpec) { s.HotplugPorts = 1 }, "has no ports"},
		{"scsi", func(s *hypervisor.VMSpec) { s.BlockBus = hypervisor.BlockSCSI }, "has virtio-blk only"},
		{"disk's id", func(s *hypervisor.VMSpec) { s.Blocks[0].ID = "A" }, `block device "A"`},
		{"disk's file", func(s *hypervisor.VMSpec) { s.Blocks[0].File = nil }, "no file"},
		{"one disk twice", func(s *hypervisor.VMSpec) { s.Blocks[1].ID = s.Blocks[0].ID }, "used twice"},
		{"too many devices", func(s *hypervisor.VMSpec) { s.Blocks = make([]hypervisor.Block, 29) }, "the PCI bus takes 28"},
		{"address", func(s *hypervisor.VMSpec) { s.NICs[0].MAC = "1:2" }, `"1:2" is not one`},
		{"no tap", func(s *hypervisor.VMSpec) { s.NICs[0].Tap = nil }, "no tap"},
		{"queues", func(s *hypervisor.VMSpec) { s.CPU.Count = 1 }, "2 pairs of queues for 1 vCPUs"},
		{"files of the host", func(s *hypervisor.VMSpec) { s.HostFiles = &hypervisor.HostFiles{} }, "use QEMU"},
		{"mtu", func(s *hypervisor.VMSpec) { s.NICs[0].MTU = 67 }, "MTU 67"},
		{"settings of SNP", func(s *hypervisor.VMSpec) { s.SNP = &hypervisor.SNP{} }, "set the platform"},
		{"tdx", func(s *hypervisor.VMSpec) { s.TEE = hypervisor.TEETDX }, "a KVM interface that Linux never got"},
		{"unknown TEE", func(s *hypervisor.VMSpec) { s.TEE = "cca" }, `unknown TEE "cca"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := plain(t)
			tt.change(&s)
			if err := Validate(s); err == nil || !strings.Contains(err.Error(), tt.want) || !errdefs.IsInvalidArgument(err) {
				t.Errorf("Validate() = %v, want an invalid argument with %q", err, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		name   string
		change func(*hypervisor.VMSpec)
		want   string
	}{
		{"no igvm", func(s *hypervisor.VMSpec) { s.Boot.Firmware = nil }, "needs an IGVM file"},
		{"no settings", func(s *hypervisor.VMSpec) { s.SNP = nil }, "without SNP settings"},
		{"settings of TDX", func(s *hypervisor.VMSpec) { s.TDX = &hypervisor.TDX{} }, "settings of TDX"},
		{"no initramfs", func(s *hypervisor.VMSpec) { s.Boot.Initrd = nil }, "binds the agent"},
		{"initramfs alone", func(s *hypervisor.VMSpec) { s.Boot.Kernel = nil }, "without a kernel"},
		{"kernel without words", func(s *hypervisor.VMSpec) { s.Boot.Cmdline = "" }, "would not measure it"},
		{"id block", func(s *hypervisor.VMSpec) { s.SNP.IDBlock = make([]byte, 96) }, "takes it from the IGVM file"},
	} {
		t.Run("snp/"+tt.name, func(t *testing.T) {
			s := snp(t)
			tt.change(&s)
			if err := Validate(s); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate() = %v, want %q", err, tt.want)
			}
		})
	}
}
