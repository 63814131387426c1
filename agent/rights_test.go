// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestModulesComeWithTheRightsForThem(t *testing.T) {
	device := specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 10, Minor: 200}
	for _, tt := range []struct {
		name   string
		caps   []string
		device []specs.LinuxDevice
		opened bool
		loaded []string
	}{
		{name: "no rights", caps: []string{"CAP_CHOWN"}},
		{name: "network", caps: []string{"CAP_NET_ADMIN"}, opened: true, loaded: legacyTables},
		{name: "mounts", caps: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, opened: true},
		{name: "tunnels", device: []specs.LinuxDevice{device}, loaded: []string{"tun"}},
		{name: "another device", device: []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}},
	} {
		f := newFixture(t)
		spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Devices: tt.device}}
		if tt.caps != nil {
			spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: tt.caps}
		}
		if err := f.prepare(spec); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if f.modules.opened != tt.opened || !slices.Equal(f.modules.loaded, tt.loaded) {
			t.Errorf("%s: opened %v, loaded %v, want %v, %v", tt.name, f.modules.opened, f.modules.loaded, tt.opened, tt.loaded)
		}
	}
	f := newFixture(t)
	f.modules.fail = errors.New("closed")
	err := f.prepare(&specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Devices: []specs.LinuxDevice{device}}})
	if err == nil || !strings.Contains(err.Error(), "device /dev/x: closed") {
		t.Errorf("a tunnel without its module = %v", err)
	}
}

func TestNoProcessHasRawIO(t *testing.T) {
	all := []string{"CAP_CHOWN", "CAP_SYS_RAWIO", "CAP_KILL"}
	c := &specs.LinuxCapabilities{
		Bounding: slices.Clone(all), Effective: slices.Clone(all), Inheritable: slices.Clone(all),
		Permitted: slices.Clone(all), Ambient: slices.Clone(all),
	}
	if err := newFixture(t).rights(&specs.Process{Capabilities: c}, true); err != nil {
		t.Fatal(err)
	}
	for _, set := range [][]string{c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient} {
		if !slices.Equal(set, []string{"CAP_CHOWN", "CAP_KILL"}) {
			t.Errorf("a set of capabilities is %v", set)
		}
	}
}
