// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Device is a block device of the host that a container gets as such (volumeDevices).
type Device struct {
	Path         string // in the container
	Major, Minor int64  // on the host
	ReadOnly     bool
}

// String names the device on the host, and whether it is written to.
func (d Device) String() string {
	s := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	if d.ReadOnly {
		s += " read-only"
	}
	return s
}

// ParseDevice reads what String has written.
func ParseDevice(s string) (d Device, err error) {
	numbers, ro := strings.CutSuffix(s, " read-only")
	if _, err := fmt.Sscanf(numbers, "%d:%d", &d.Major, &d.Minor); err != nil {
		return Device{}, fmt.Errorf("block device %q: %w", s, err)
	}
	d.ReadOnly = ro
	return d, nil
}

// Devices lists the block devices that somebody chose for a container. A privileged container has all
// of the host's in its list as well, by the host's own names: those are not meant, isHosts tells them.
func Devices(s *specs.Spec, privileged bool, isHosts func(specs.LinuxDevice) bool) []Device {
	if s.Linux == nil || sandboxID(s) == "" {
		return nil // what somebody named on a command line is refused with a sentence
	}
	var out []Device
	for _, d := range s.Linux.Devices {
		if d.Type != "b" || privileged && isHosts(d) {
			continue
		}
		out = append(out, Device{Path: d.Path, Major: d.Major, Minor: d.Minor, ReadOnly: !privileged &&
			!writes(s.Linux.Resources, d)})
	}
	return out
}

// writes says whether the device cgroup's rules let the container write to a device.
func writes(res *specs.LinuxResources, d specs.LinuxDevice) bool {
	if res == nil {
		return true
	}
	ok := false
	for _, r := range res.Devices { // the last one counts
		kind := r.Type == "" || r.Type == "a" || r.Type == "b"
		if kind && (r.Major == nil || *r.Major < 0 || *r.Major == d.Major) &&
			(r.Minor == nil || *r.Minor < 0 || *r.Minor == d.Minor) && strings.Contains(r.Access, "w") {
			ok = r.Allow
		}
	}
	return ok
}
