// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestDisksAreNumberedByTheirOrder: what the guest is told of a disk does not depend on its number on the host, and the
// rules for it follow.
func TestDisksAreNumberedByTheirOrder(t *testing.T) {
	s := plain()
	disk := func(path string, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: path, Type: "b", Major: 8, Minor: minor}
	}
	s.Linux.Devices = []specs.LinuxDevice{disk("/dev/a", 16), disk("/dev/b", 3), disk("/dev/again", 16)}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "b", Major: p(int64(8)), Minor: p(int64(16)), Access: "rwm"},
		{Allow: true, Type: "b", Major: p(int64(8)), Minor: p(int64(3)), Access: "r"},
		{Allow: true, Type: "b", Major: p(int64(8)), Minor: p(int64(4)), Access: "m"},
		{Allow: true, Type: "c", Major: p(int64(8)), Minor: p(int64(3)), Access: "r"},
	}}
	before := fmt.Sprint(s.Linux.Devices, *s.Linux.Resources.Devices[1].Major)
	out, err := Convert(Input{
		ID: "c1", Spec: s, Disks: map[string]bool{"/dev/a": true, "/dev/b": true, "/dev/again": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range out.OCI.GetLinux().GetDevices() {
		got = append(got, fmt.Sprintf("%s %d:%d", d.GetPath(), d.GetMajor(), d.GetMinor()))
	}
	for _, r := range out.OCI.GetLinux().GetResources().GetDevices() {
		got = append(got, fmt.Sprintf("%s %d:%d", r.GetAccess(), r.GetMajor(), r.GetMinor()))
	}
	want := []string{"/dev/a 0:0", "/dev/b 0:1", "/dev/again 0:0", "rwm -1:-1", "rwm 0:0", "r 0:1", "m 8:4", "r 8:3"}
	if !slices.Equal(got, want) {
		t.Errorf("the guest gets %q, want %q", got, want)
	}
	if after := fmt.Sprint(s.Linux.Devices, *s.Linux.Resources.Devices[1].Major); after != before {
		t.Errorf("the specification was changed to %s from %s", after, before)
	}
}
