// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package devnode

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
)

func TestAddGivesWhatTheGuestHas(t *testing.T) {
	testvm.Need(t, testvm.Root)
	root := t.TempDir()
	for _, d := range []string{"net", "pts"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]uint32{
		"null": unix.S_IFCHR, "mem": unix.S_IFCHR, "port": unix.S_IFCHR, "vda": unix.S_IFBLK, "net/tun": unix.S_IFCHR,
		"vport0p1": unix.S_IFCHR, "tpm0": unix.S_IFCHR, "tpmrm0": unix.S_IFCHR, "pts/0": unix.S_IFCHR, "mine": unix.S_IFCHR,
	} {
		if err := unix.Mknod(filepath.Join(root, name), mode|0o600, int(unix.Mkdev(10, 200))); err != nil {
			t.Skipf("no device nodes here: %v", err)
		}
	}
	s := &specs.Spec{Linux: &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/mine", Type: "b", Major: 7}}}}
	if err := Add(s, root, false); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, d := range s.Linux.Devices {
		got[d.Path] = d.Type
	}
	want := map[string]string{"/dev/mine": "b", "/dev/vda": "b", "/dev/net/tun": "c"}
	if len(got) != len(want) {
		t.Errorf("devices = %v, want %v", got, want)
	}
	for p, kind := range want {
		if got[p] != kind {
			t.Errorf("%s is %q, want %q", p, got[p], kind)
		}
	}
	i := slices.IndexFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/net/tun" })
	if d := s.Linux.Devices[i]; d.Major != 10 || d.Minor != 200 || *d.FileMode != 0o600 {
		t.Errorf("/dev/net/tun = %+v", d)
	}
}

func TestAClosedGuestKeepsItsSerialLines(t *testing.T) {
	for d, want := range map[specs.LinuxDevice]bool{
		{Type: "c", Major: 4, Minor: 64}: true, {Type: "c", Major: 4, Minor: 1}: false, {Type: "c", Major: 5, Minor: 1}: true,
		{Type: "c", Major: 229}: true, {Type: "b", Major: 229}: false, {Type: "c", Major: 10, Minor: 229}: false,
	} {
		if got := serial(d); got != want {
			t.Errorf("serial(%s %d:%d) = %v", d.Type, d.Major, d.Minor, got)
		}
	}
}

func TestAllAllowed(t *testing.T) {
	n := int64(8)
	for _, tc := range []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		{"nothing", nil, false},
		{"deny all", []specs.LinuxDeviceCgroup{{Access: "rwm"}}, false},
		{"one device", []specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: &n, Access: "rwm"}}, false},
		{"all", []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Access: "rwm"}}, true},
		{"all, typed", []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}, true},
		{"all, read only", []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "r"}}, false},
	} {
		s := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: tc.rules}}}
		if got := AllAllowed(s); got != tc.want {
			t.Errorf("%s: AllAllowed = %v, want %v", tc.name, got, tc.want)
		}
	}
}
