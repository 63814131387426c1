// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestHugePages(t *testing.T) {
	g := newGuest(t)
	g.write("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n")
	mt := &mounted{}
	o, err := parseOptions([]string{"pagesize=2Mi", "size=8m"})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.reserveHugePages(mt, o); err != nil {
		t.Fatal(err)
	}
	count := func() int64 {
		n, err := readInt(filepath.Join(g.sys, "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 7 {
		t.Errorf("%d huge pages, want 7", n)
	}
	if err := mt.undo.Run(t.Context()); err != nil || count() != 3 {
		t.Errorf("after undo: %d huge pages, %v, want 3", count(), err)
	}
	o.data = []string{"pagesize=2M", "size=3m"}
	if err := g.reserveHugePages(mt, o); !errdefs.IsInvalidArgument(err) {
		t.Errorf("reserveHugePages of one and a half pages = %v", err)
	}
}

func TestDevicesGetTheGuestsNumbers(t *testing.T) {
	g := newGuest(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a := g.disk(file)
	found, _, err := g.findDisk(t.Context(), contract.DriverSCSI, a.Source)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseNumber(found.Number)
	if err != nil {
		t.Fatal(err)
	}
	major, minor := new(int64(259)), new(int64(4))
	spec := &specs.Spec{Linux: &specs.Linux{
		Devices: []specs.LinuxDevice{
			{Path: "/dev/x", Type: "b", Major: 259, Minor: 4},
			{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		},
		Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Type: "b", Major: major, Minor: minor},
			{Type: "c", Major: major, Minor: minor},
			{Major: major, Minor: minor},
			{Allow: false},
		}},
	}}
	dev := &agent.Device{Type: "scsi", VmPath: a.Source, ContainerPath: "/dev/x"}
	if err := g.Devices(t.Context(), "c", []*agent.Device{dev}, spec); err != nil {
		t.Fatal(err)
	}
	rules := spec.Linux.Resources.Devices
	wanted := []specs.LinuxDeviceCgroup{
		{Type: "b", Major: &want.major, Minor: &want.minor},
		{Type: "c", Major: new(int64(259)), Minor: new(int64(4))},
		{Type: "b", Major: &want.major, Minor: &want.minor},
		{Allow: false},
	}
	if diff := cmp.Diff(wanted, rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if d := spec.Linux.Devices[0]; d.Major != want.major || d.Minor != want.minor {
		t.Errorf("the device has number %d:%d, want %d:%d", d.Major, d.Minor, want.major, want.minor)
	}
	for _, bad := range []*agent.Device{
		{Type: "vfio-pci", ContainerPath: "/dev/x"},
		{Type: "scsi", VmPath: "0:0", ContainerPath: "/dev/other"},
		{Type: "scsi", VmPath: "0:0", ContainerPath: "/dev/null"},
		{Type: "blk", VmPath: "../x", ContainerPath: "/dev/x"},
	} {
		if err := g.Devices(t.Context(), "c", []*agent.Device{bad}, spec); err == nil {
			t.Errorf("Devices(%v) succeeded", bad)
		}
	}
	if err := g.Remove(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(g.sys, "bus/scsi/devices/0:0:0:0/delete")); !bytes.HasPrefix(b, []byte("1")) {
		t.Error("the container's disk was not let go")
	}
}

func TestShutdownClosesTheDoor(t *testing.T) {
	g := newGuest(t)
	if err := g.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &agent.Storage{Driver: "local", MountPoint: g.root + "/l"}
	if err := g.Add(t.Context(), "", []*agent.Storage{s}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Add after Shutdown = %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "12": 12, "2k": 2048, "2Ki": 2048, "2KiB": 2048, "3M": 3 << 20,
		"1g": 1 << 30,
	} {
		if got, err := parseSize(in); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "k", "-1", "1x", "1kk", "99999999999g", "1 m"} {
		if _, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) succeeded", in)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("ro,nosuid\nsize=1m,mode=0700\nfsgid=5")
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		o, err := parseOptions(strings.Split(s, "\n"))
		if err != nil {
			return
		}
		if strings.ContainsRune(o.joined(), 0) || len(o.data) > maxOptions {
			t.Fatalf("options %q", o.data)
		}
		if mode, err := o.takeMode(0); err == nil && mode > 0o7777 {
			t.Fatalf("mode %o", mode)
		}
		if id, _, err := o.takeID("fsgid"); err == nil && id < 0 {
			t.Fatalf("id %d", id)
		}
		v, _, _ := o.take("size")
		_, _ = parseSize(v) // must not panic
	})
}

func FuzzPaths(f *testing.F) {
	f.Add(contract.GuestRoot + "/a/../b")
	m := New(contract.GuestRoot)
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		if c, err := m.clean(s); err == nil && (!strings.HasPrefix(c, contract.GuestRoot+"/") ||
			strings.Contains(c, "/../")) {
			t.Fatalf("path %q became %q", s, c)
		}
	})
}
