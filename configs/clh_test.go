// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestCloudHypervisorsExamplesLoad(t *testing.T) {
	for name, platform := range map[string]string{"config-clh.toml": "none", "config-clh-snp.toml": "snp"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Decode(name, bytes.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		h := c.Hypervisor
		if h.Type != TypeCLH || h.Platform != platform || h.Machine != "" || h.BlockBus != "virtio-blk" ||
			!h.Landlock || !h.Seccomp {
			t.Errorf("%s = %+v", name, h)
		}
	}
}

func TestTypeBringsItsDefaults(t *testing.T) {
	c, err := Decode("t.toml", strings.NewReader("[hypervisor]\ntype = \"clh\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if h := c.Hypervisor; h.Path != clhPath || h.Machine != "" || h.BlockBus != "virtio-blk" ||
		h.HotplugPorts != 0 || h.Landlock {
		t.Errorf("defaults of clh: %+v", h)
	}
	c, err = Decode("t.toml", strings.NewReader("[hypervisor]\ntype = \"clh\"\npath = \"/opt/ch\"\n"))
	if err != nil || c.Hypervisor.Path != "/opt/ch" {
		t.Errorf("path = %q, %v, want the one that was set", c.Hypervisor.Path, err)
	}
}

func TestTypeRefusesWhatItCannotDo(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{
			"type = \"clh\"\nplatform = \"tdx\"\nfirmware = \"/f\"",
			`hypervisor.platform: "tdx": Cloud Hypervisor's support needs a KVM interface that Linux never got`,
		},
		{"type = \"clh\"\naccel = \"tcg\"", `hypervisor.accel: "tcg": Cloud Hypervisor runs on KVM only`},
		{
			"type = \"clh\"\nplatform = \"snp\"\naccel = \"tcg\"\nfirmware = \"/f\"",
			`hypervisor.accel: "tcg" cannot run platform "snp"`,
		},
		{"type = \"clh\"\nmachine = \"q35\"", `hypervisor.machine: "q35": Cloud Hypervisor has one machine`},
		{
			"type = \"clh\"\ncpu_model = \"EPYC-v4\"",
			`hypervisor.cpu_model: "EPYC-v4": Cloud Hypervisor shows guests the host's processor`,
		},
		{
			"type = \"clh\"\nblock_bus = \"virtio-scsi\"",
			`hypervisor.block_bus: "virtio-scsi": Cloud Hypervisor has virtio-blk only`,
		},
		{"type = \"clh\"\nhotplug_ports = 4", "hypervisor.hotplug_ports: Cloud Hypervisor plugs devices into its root bus"},
		{
			"type = \"clh\"\nfirmware = \"/f\"",
			"hypervisor.firmware: on platform \"none\" Cloud Hypervisor would boot it instead",
		},
		{"type = \"clh\"\nplatform = \"snp\"", "expected the absolute path of an IGVM file"},
		{"type = \"qemu\"\nmachine = \"\"", "hypervisor.machine: must not be empty"},
		{"type = \"qemu\"\nlandlock = true", `hypervisor.landlock: means nothing for type "qemu"`},
		{"type = \"firecracker\"", `hypervisor.type: "firecracker" is not known; expected one of "qemu", "clh"`},
	} {
		_, err := Decode("t.toml", strings.NewReader("[hypervisor]\n"+tt.text+"\n"))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: Decode() = %v, want %q", tt.text, err, tt.want)
		}
	}
}
