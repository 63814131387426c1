// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/hypervisor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var manyA = regexp.MustCompile("A{100,}=*")

// unopened stands for a file of which only the identity counts.
func unopened() *os.File { return new(os.File) }

func plainSpec() hypervisor.VMSpec {
	return hypervisor.VMSpec{
		ID: "pod1", Machine: "q35", Accel: hypervisor.AccelTCG, CPU: hypervisor.CPU{Count: 2}, MemoryMiB: 512,
		Boot:     hypervisor.Boot{Kernel: unopened(), Initrd: unopened(), Cmdline: "console=ttyS0 quiet, with a comma"},
		BlockBus: hypervisor.BlockSCSI, HotplugPorts: 2, BootTimeout: time.Minute,
		Blocks: []hypervisor.Block{{ID: "layer-0", File: unopened(), ReadOnly: true}, {ID: "scratch", File: unopened()}},
		NICs:   []hypervisor.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Tap: []*os.File{unopened(), unopened()}, MTU: 1450}},
	}
}

// firmware is a file of the right size: validation looks at it.
func firmware(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "fw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func snpSpec(t *testing.T) hypervisor.VMSpec {
	t.Helper()
	s := plainSpec()
	s.TEE, s.Accel, s.CPU.Model = hypervisor.TEESNP, hypervisor.AccelKVM, "EPYC-v4"
	s.Boot.Firmware = firmware(t, 4<<20)
	s.SNP = &hypervisor.SNP{
		Policy: 0x30000, HostData: [32]byte{1, 2, 3}, IDBlock: make([]byte, 96),
		IDAuth: make([]byte, 4096),
	}
	return s
}

func vtpmSpec() hypervisor.VMSpec {
	s := plainSpec()
	s.Boot.Firmware, s.Boot.TPM = unopened(), &hypervisor.TPM{Control: unopened()}
	return s
}

func tdxSpec(t *testing.T) hypervisor.VMSpec {
	t.Helper()
	s := plainSpec()
	s.TEE, s.Accel = hypervisor.TEETDX, hypervisor.AccelKVM
	s.Boot.Firmware = firmware(t, 4<<20)
	s.TDX = &hypervisor.TDX{MRConfigID: [48]byte{9}, QuoteVsock: 4050}
	return s
}

func TestCommandLines(t *testing.T) {
	blk := plainSpec()
	blk.BlockBus = hypervisor.BlockBlk
	kvm := plainSpec()
	kvm.Accel, kvm.CPU.Model, kvm.Boot.Firmware = hypervisor.AccelKVM, "EPYC", unopened()
	kvm.Blocks, kvm.NICs, kvm.HotplugPorts = nil, nil, 0
	files := plainSpec()
	files.HostFiles = &hypervisor.HostFiles{Tag: "live", Socket: unopened()}
	vtpm := vtpmSpec()
	tests := map[string]hypervisor.VMSpec{
		"vtpm":      vtpm,
		"plain-tcg": plainSpec(), "plain-blk": blk, "plain-kvm": kvm,
		"plain-files": files, "snp": snpSpec(t), "tdx": tdxSpec(t),
	}
	for name, spec := range tests {
		t.Run(name, func(t *testing.T) {
			par := Params{
				Binary: "/usr/bin/qemu-system-x86_64", CBitPos: 51, ReducedPhysBits: 1, Agent: unopened(),
				Control: unopened(), Console: unopened(),
			}
			cmd := Build(spec, par)
			var b strings.Builder
			for _, a := range cmd.Argv {
				a = manyA.ReplaceAllString(a, "<zeros>") // of ID block and authentication
				if strings.HasPrefix(a, "-") {
					fmt.Fprintf(&b, "\n%s", a)
				} else {
					fmt.Fprintf(&b, " %s", a)
				}
			}
			got := strings.TrimSpace(b.String()) + "\n"
			golden := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("Build() (-want +got):\n%s", diff)
			}
			checkFiles(t, spec, par, cmd)
		})
	}
}

func TestAnAuthorKeyIsEnabledWhereThereIsOne(t *testing.T) {
	par := Params{
		Binary: "q", CBitPos: 51, ReducedPhysBits: 1, Agent: unopened(), Control: unopened(),
		Console: unopened(),
	}
	for _, author := range []bool{false, true} {
		s := snpSpec(t)
		if author {
			s.SNP.IDAuth[authorAlgo] = 1
		}
		if got := strings.Contains(strings.Join(Build(s, par).Argv, " "), ",author-key-enabled=on"); got != author {
			t.Errorf("with an author key %t: author-key-enabled is %t", author, got)
		}
	}
}

// checkFiles holds that each file is handed over exactly once and the kernel under its number.
func checkFiles(t *testing.T, spec hypervisor.VMSpec, par Params, cmd Command) {
	t.Helper()
	want := 3 + 2 + len(spec.Blocks)
	if spec.Boot.Firmware != nil {
		want++
	}
	if spec.Boot.TPM != nil {
		want++
	}
	for _, n := range spec.NICs {
		want += len(n.Tap)
	}
	if spec.HostFiles != nil {
		want++
	}
	if len(cmd.Files) != want {
		t.Errorf("%d files, want %d", len(cmd.Files), want)
	}
	for i, f := range cmd.Files {
		if f == spec.Boot.Kernel &&
			!strings.Contains(strings.Join(cmd.Argv, " "), fmt.Sprintf("-kernel /proc/self/fd/%d", 3+i)) {
			t.Errorf("kernel is file %d, the command line says something else", i)
		}
		if f == par.Control && !strings.Contains(strings.Join(cmd.Argv, " "), fmt.Sprintf("socket,id=control,fd=%d", 3+i)) {
			t.Errorf("control is file %d, the command line says something else", i)
		}
	}
}

func TestUnmeasuredThingsDoNotReachMeasuredArguments(t *testing.T) {
	a := snpSpec(t)
	b := a
	b.ID, b.Blocks, b.NICs = "pod2", nil, []hypervisor.NIC{{ID: "eth0", MAC: "02:00:00:00:00:99", Tap: a.NICs[0].Tap}}
	par := Params{Binary: "q", CBitPos: 51, ReducedPhysBits: 1}
	for _, flag := range []string{"-machine", "-cpu", "-smp", "-object", "-append", "-bios", "-kernel", "-initrd"} {
		if diff := cmp.Diff(values(Build(a, par).Argv, flag), values(Build(b, par).Argv, flag)); diff != "" {
			t.Errorf("%s differs:\n%s", flag, diff)
		}
	}
}

func values(argv []string, flag string) (v []string) {
	for i, a := range argv {
		if a == flag {
			v = append(v, argv[i+1])
		}
	}
	return v
}

func TestValidateRefuses(t *testing.T) {
	plain := func(change func(*hypervisor.VMSpec)) hypervisor.VMSpec { s := plainSpec(); change(&s); return s }
	snp := func(change func(*hypervisor.VMSpec)) hypervisor.VMSpec { s := snpSpec(t); change(&s); return s }
	tdx := func(change func(*hypervisor.VMSpec)) hypervisor.VMSpec { s := tdxSpec(t); change(&s); return s }
	vtpm := func(change func(*hypervisor.VMSpec)) hypervisor.VMSpec { s := vtpmSpec(); change(&s); return s }
	tests := []struct {
		name string
		spec hypervisor.VMSpec
		want string // "" means accepted
	}{
		{"a plain VM", plainSpec(), ""},
		{"an SNP VM", snpSpec(t), ""},
		{"a TDX VM", tdxSpec(t), ""},
		{"an id with a path in it", plain(func(s *hypervisor.VMSpec) { s.ID = "../x" }), `id "../x"`},
		{"another machine", plain(func(s *hypervisor.VMSpec) { s.Machine = "pc" }), "only q35"},
		{"an unknown accelerator", plain(func(s *hypervisor.VMSpec) { s.Accel = "hvf" }), `accelerator "hvf"`},
		{"no processor", plain(func(s *hypervisor.VMSpec) { s.CPU.Count = 0 }), "0 vCPUs"},
		{"options smuggled in by the CPU model", plain(func(s *hypervisor.VMSpec) { s.CPU.Model = "max,x=y" }), "bare name"},
		{"too little memory", plain(func(s *hypervisor.VMSpec) { s.MemoryMiB = 16 }), "16 MiB of memory: want at least 64"},
		{"no kernel", plain(func(s *hypervisor.VMSpec) { s.Boot.Kernel = nil }), "no kernel"},
		{
			"a long command line", plain(func(s *hypervisor.VMSpec) { s.Boot.Cmdline = strings.Repeat("a", 2048) }),
			"the kernel takes 2047",
		},
		{"a command line of two lines", plain(func(s *hypervisor.VMSpec) { s.Boot.Cmdline = "a\nb" }), "newline"},
		{"no timeout", plain(func(s *hypervisor.VMSpec) { s.BootTimeout = 0 }), "no boot timeout"},
		{"too many ports", plain(func(s *hypervisor.VMSpec) { s.HotplugPorts = 16 }), "16 hot-plug ports"},
		{"no block bus", plain(func(s *hypervisor.VMSpec) { s.BlockBus = "" }), `block bus ""`},
		{
			"more disks than ports", plain(func(s *hypervisor.VMSpec) { s.BlockBus, s.HotplugPorts = hypervisor.BlockBlk, 1 }),
			"2 block devices on virtio-blk",
		},
		{"a disk twice", plain(func(s *hypervisor.VMSpec) { s.Blocks[1].ID = "layer-0" }), `"layer-0": id used twice`},
		{"a disk without a file", plain(func(s *hypervisor.VMSpec) { s.Blocks[0].File = nil }), "no file"},
		{"a disk with a bad id", plain(func(s *hypervisor.VMSpec) { s.Blocks[0].ID = "a,b" }), "id must match"},
		{
			"a disk with a long id", plain(func(s *hypervisor.VMSpec) { s.Blocks[0].ID = strings.Repeat("a", 21) }),
			"id must match",
		},
		{"a disk with the longest id", plain(func(s *hypervisor.VMSpec) { s.Blocks[0].ID = strings.Repeat("a", 20) }), ""},
		{"a bad MAC", plain(func(s *hypervisor.VMSpec) { s.NICs[0].MAC = "x" }), `MAC address "x"`},
		{"no tap", plain(func(s *hypervisor.VMSpec) { s.NICs[0].Tap = nil }), "no tap"},
		{"a bad MTU", plain(func(s *hypervisor.VMSpec) { s.NICs[0].MTU = 20 }), "MTU 20"},
		{"TEE settings without TEE", plain(func(s *hypervisor.VMSpec) { s.SNP = &hypervisor.SNP{} }), "without one"},
		{"an unknown TEE", plain(func(s *hypervisor.VMSpec) { s.TEE = "sgx" }), `unknown TEE "sgx"`},
		{"SNP without firmware", snp(func(s *hypervisor.VMSpec) { s.Boot.Firmware = nil }), "needs firmware"},
		{"SNP without initramfs", snp(func(s *hypervisor.VMSpec) { s.Boot.Initrd = nil }), "needs an initramfs"},
		{"SNP under TCG", snp(func(s *hypervisor.VMSpec) { s.Accel = hypervisor.AccelTCG }), "needs KVM"},
		{
			"SNP with an odd firmware", snp(func(s *hypervisor.VMSpec) { s.Boot.Firmware = firmware(t, 4<<20+1) }),
			"multiple of 65536",
		},
		{"SNP with the host's processor", snp(func(s *hypervisor.VMSpec) { s.CPU.Model = "host" }), "name one"},
		{"SNP that can be debugged", snp(func(s *hypervisor.VMSpec) { s.SNP.Policy |= 1 << 19 }), "allows debugging"},
		{"SNP that can be debugged on purpose", snp(func(s *hypervisor.VMSpec) {
			s.SNP.Policy |= 1 << 19
			s.SNP.InsecureDebug = true
		}), ""},
		{"SNP with a reserved bit clear", snp(func(s *hypervisor.VMSpec) { s.SNP.Policy = 0x10000 }), "bit 17"},
		{"SNP with half an identity", snp(func(s *hypervisor.VMSpec) { s.SNP.IDAuth = nil }), "belong together"},
		{"SNP with a short identity", snp(func(s *hypervisor.VMSpec) { s.SNP.IDBlock = make([]byte, 95) }), "95 bytes"},
		{"SNP without settings", snp(func(s *hypervisor.VMSpec) { s.SNP = nil }), "without SNP settings"},
		{"SNP with TDX settings", snp(func(s *hypervisor.VMSpec) { s.TDX = &hypervisor.TDX{} }), "settings of TDX"},
		{"TDX with a named processor", tdx(func(s *hypervisor.VMSpec) { s.CPU.Model = "EPYC" }), "only with the host's"},
		{"TDX without settings", tdx(func(s *hypervisor.VMSpec) { s.TDX = nil }), "without TDX settings"},
		{"a virtual TPM", vtpmSpec(), ""},
		{"a virtual TPM that nobody serves", vtpm(func(s *hypervisor.VMSpec) { s.Boot.TPM.Control = nil }), "a process"},
		{"a virtual TPM without firmware", vtpm(func(s *hypervisor.VMSpec) { s.Boot.Firmware = nil }), "needs firmware"},
		{"a virtual TPM without initramfs", vtpm(func(s *hypervisor.VMSpec) { s.Boot.Initrd = nil }), "needs an initramfs"},
		{"a virtual TPM in a TEE", snp(func(s *hypervisor.VMSpec) { s.Boot.TPM = &hypervisor.TPM{} }), "host would run"},
		{"a virtual TPM beside files of the host", vtpm(func(s *hypervisor.VMSpec) {
			s.HostFiles = &hypervisor.HostFiles{Tag: "live", Socket: unopened()}
		}), "trusts none"},
		{"files of the host", plain(func(s *hypervisor.VMSpec) {
			s.HostFiles = &hypervisor.HostFiles{Tag: "live", Socket: unopened()}
		}), ""},
		{"files of the host without a socket", plain(func(s *hypervisor.VMSpec) {
			s.HostFiles = &hypervisor.HostFiles{Tag: "live"}
		}), "no socket"},
		{"options smuggled in by a tag", plain(func(s *hypervisor.VMSpec) {
			s.HostFiles = &hypervisor.HostFiles{Tag: "a,b", Socket: unopened()}
		}), "must match"},
		{"files of the host in a TEE", snp(func(s *hypervisor.VMSpec) {
			s.HostFiles = &hypervisor.HostFiles{Tag: "live", Socket: unopened()}
		}), "trusts none"},
		{"TDX with two quote services", tdx(func(s *hypervisor.VMSpec) { s.TDX.QuoteUnix = "/run/x" }), "two quote"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Validate(tt.spec)
			if tt.want == "" {
				if err != nil {
					t.Errorf("Validate() = %v, want nil", err)
				}
				return
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate() = %v, want an invalid argument with %q", err, tt.want)
			}
		})
	}
}

func TestTheAcceleratorIsDecidedHonestly(t *testing.T) {
	bad := fmt.Errorf("no /dev/kvm here")
	tests := []struct {
		name   string
		ask    hypervisor.Accel
		kvm    error
		want   hypervisor.Accel
		errHas string
	}{
		{"auto with KVM", hypervisor.AccelAuto, nil, hypervisor.AccelKVM, ""},
		{"auto without KVM", hypervisor.AccelAuto, bad, hypervisor.AccelTCG, ""},
		{"tcg with KVM", hypervisor.AccelTCG, nil, hypervisor.AccelTCG, ""},
		{"kvm without KVM", hypervisor.AccelKVM, bad, "", "it needs KVM: no /dev/kvm here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := New(Options{})
			d.kvmUsable = func() error { return tt.kvm }
			spec := plainSpec()
			spec.Accel = tt.ask
			got, err := d.resolve(t.Context(), spec)
			if tt.errHas != "" {
				if err == nil || !strings.Contains(err.Error(), tt.errHas) {
					t.Errorf("resolve() = %v, want %q", err, tt.errHas)
				}
				return
			}
			if err != nil || got.Accel != tt.want {
				t.Errorf("resolve() = %q, %v, want %q", got.Accel, err, tt.want)
			}
		})
	}
}

func TestSlotsAreReusedAndBounded(t *testing.T) {
	s := newSlots(2)
	for i, id := range []string{"a", "b"} {
		if n, err := s.take(id); n != i || err != nil {
			t.Errorf("take(%s) = %d, %v, want %d", id, n, err, i)
		}
	}
	if _, err := s.take("c"); err == nil {
		t.Error("take() of a third place of two = nil")
	}
	s.free(0)
	if _, err := s.take("b"); err == nil {
		t.Error("take() of an id that has a place = nil")
	}
	if n, err := s.take("c"); n != 0 || err != nil {
		t.Errorf("take(c) = %d, %v, want the freed place 0", n, err)
	}
}
