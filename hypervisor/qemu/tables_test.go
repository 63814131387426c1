// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/qtest"
	"github.com/coco-shim/coco/internal/testvm"
)

var measured = []string{qtest.Loader, qtest.RSDP, qtest.ACPI, qtest.SMBIOS}

// newestQEMU is the newest there is: TDX wants 10.1, but the tables are made by any.
func newestQEMU(t testing.TB) string {
	t.Helper()
	testvm.Need(t, testvm.QEMU)
	if testvm.Has(testvm.QEMU111) {
		return testvm.Unpacked("qemu-11.1", "qemu-system-x86_64")
	}
	return "/usr/bin/qemu-system-x86_64"
}

func readTables(t testing.TB, argv []string) map[string][]byte {
	t.Helper()
	files, err := qtest.Read(t.Context(), argv, qtest.OVMF(202508, 46), measured...)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range measured {
		if len(files[n]) == 0 {
			t.Fatalf("%s is missing or empty", n)
		}
	}
	return files
}

func differing(a, b map[string][]byte) (names []string) {
	for _, n := range measured {
		if !bytes.Equal(a[n], b[n]) {
			names = append(names, n)
		}
	}
	return names
}

func tablesSpec() hypervisor.VMSpec {
	return hypervisor.VMSpec{
		ID: "pod1", Machine: "q35", TEE: hypervisor.TEETDX, TDX: &hypervisor.TDX{}, CPU: hypervisor.CPU{Count: 2},
		MemoryMiB: 1024,
		BlockBus:  hypervisor.BlockSCSI,
		NICs:      []hypervisor.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Tap: []*os.File{unopened()}}},
	}
}

func TestTablesAreTheSameInTwentyRuns(t *testing.T) {
	argv := Tables(tablesSpec(), newestQEMU(t))
	first := readTables(t, argv)
	for range 19 {
		if d := differing(first, readTables(t, argv)); d != nil {
			t.Fatalf("%v differ between two runs", d)
		}
	}
}

// Every difference that must not be in the tables is in the command lines here: they are not made uniform.
func TestTablesDoNotShowWhatIsNotMeasured(t *testing.T) {
	bin := newestQEMU(t)
	want := readTables(t, tables(tablesSpec(), bin))
	for name, change := range map[string]func(*hypervisor.VMSpec){
		"id":           func(s *hypervisor.VMSpec) { s.ID = "another" },
		"MAC and name": func(s *hypervisor.VMSpec) { s.NICs = []hypervisor.NIC{{ID: "net7", MAC: "02:00:00:00:77:77"}} },
		"MTU": func(s *hypervisor.VMSpec) {
			s.NICs = []hypervisor.NIC{{ID: "eth0", MAC: s.NICs[0].MAC, MTU: 9000}}
		},
		"layers from boot": func(s *hypervisor.VMSpec) {
			s.Blocks = []hypervisor.Block{{ID: "l1", ReadOnly: true}, {ID: "l2"}}
		},
		"MRCONFIGID":   func(s *hypervisor.VMSpec) { s.TDX = &hypervisor.TDX{MRConfigID: [48]byte{1}, QuoteVsock: 4050} },
		"command line": func(s *hypervisor.VMSpec) { s.Boot.Cmdline = "quiet" },
	} {
		s := tablesSpec()
		change(&s)
		if d := differing(want, readTables(t, tables(s, bin))); d != nil {
			t.Errorf("%s: %v differ", name, d)
		}
		same := s
		if len(s.Blocks) == 0 {
			if d := cmp.Diff(Tables(tablesSpec(), bin), Tables(same, bin)); d != "" {
				t.Errorf("%s: the command lines, by which tables are cached, differ:\n%s", name, d)
			}
		}
	}
}

func TestTablesShowWhatIsMeasured(t *testing.T) {
	bin := newestQEMU(t)
	want := readTables(t, Tables(tablesSpec(), bin))
	for name, change := range map[string]func(*hypervisor.VMSpec){
		"vCPUs":          func(s *hypervisor.VMSpec) { s.CPU.Count = 3 },
		"memory":         func(s *hypervisor.VMSpec) { s.MemoryMiB = 1152 },
		"hot-plug ports": func(s *hypervisor.VMSpec) { s.HotplugPorts = 1 },
		"interfaces": func(s *hypervisor.VMSpec) {
			s.NICs = append(s.NICs, hypervisor.NIC{ID: "eth1", MAC: "02:00:00:00:00:02"})
		},
	} {
		s := tablesSpec()
		change(&s)
		if d := differing(want, readTables(t, Tables(s, bin))); d == nil {
			t.Errorf("%s: the tables are the same", name)
		}
	}
}

// Some builds have the accelerator "qtest", some do without.
func TestTablesOfEveryQEMU(t *testing.T) {
	for _, b := range binaries {
		t.Run(b.name, func(t *testing.T) {
			bin := binaryPath(t, b.name, b.need)
			start := time.Now()
			files := readTables(t, Tables(tablesSpec(), bin))
			t.Logf("read in %s: %v", time.Since(start).Round(time.Millisecond), len(files[qtest.ACPI]))
		})
	}
}

func BenchmarkTables(b *testing.B) {
	argv := Tables(tablesSpec(), newestQEMU(b))
	for b.Loop() {
		readTables(b, argv)
	}
}
