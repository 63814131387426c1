// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import "fmt"

// Drivers, as hypervisor.type names them.
const (
	TypeQEMU = "qemu"
	TypeCLH  = "clh"
)

// clhPath is where Cloud Hypervisor's release is put; no distribution has a package of it.
const clhPath = "/usr/local/bin/cloud-hypervisor"

// driverDefaults fills in what another driver than the default one takes when nobody said otherwise.
func (d *decoder) driverDefaults() {
	h := &d.cfg.Hypervisor
	// The one port is for an interface that comes later. Where ports are measured, or are for something else, they
	// are there only when somebody asked for them; Cloud Hypervisor has none.
	if _, ok := d.set["hypervisor.hotplug_ports"]; !ok && (h.Type != TypeQEMU || h.Platform != "none" ||
		h.BlockBus != "virtio-scsi") {
		h.HotplugPorts = 0
	}
	// Memory of other platforms cannot be copied, and Cloud Hypervisor's driver does not save VMs.
	if _, ok := d.set["runtime.template"]; !ok && (h.Type != TypeQEMU || h.Platform != "none") {
		d.cfg.Runtime.Template = TemplateOff
	}
	if h.Type != TypeCLH {
		return
	}
	for key, set := range map[string]func(){
		"hypervisor.path":      func() { h.Path = clhPath },
		"hypervisor.machine":   func() { h.Machine = "" },
		"hypervisor.block_bus": func() { h.BlockBus = "virtio-blk" },
	} {
		if _, ok := d.set[key]; !ok {
			set()
		}
	}
}

// driver checks what the driver makes of other keys.
func (d *decoder) driver(h Hypervisor) {
	if h.Type == TypeCLH {
		d.clh(h)
		return
	}
	if h.Machine == "" {
		d.blame("hypervisor.machine", "must not be empty", "a machine type, as in \"q35\"")
	}
	if h.Landlock {
		d.blame("hypervisor.landlock", fmt.Sprintf("means nothing for type %q", h.Type), "false")
	}
	if h.BlockBus == "virtio-blk" && h.HotplugPorts == 0 {
		d.blame("hypervisor.hotplug_ports", "is 0, but block_bus \"virtio-blk\" plugs every layer, and every writable "+
			"layer on a disk, into a port of its own", "1 to 32")
	}
}

// clh checks what Cloud Hypervisor cannot do, or does in one way only.
func (d *decoder) clh(h Hypervisor) {
	if h.Platform == "tdx" {
		d.blame("hypervisor.platform", "\"tdx\": Cloud Hypervisor's support needs a KVM interface that Linux never got",
			"\"none\" or \"snp\", or type = \"qemu\"")
	}
	if h.Accel == "tcg" && h.Platform != "snp" { // else the platform says it
		d.blame("hypervisor.accel", "\"tcg\": Cloud Hypervisor runs on KVM only", "\"\" or \"kvm\", or type = \"qemu\"")
	}
	if h.Machine != "" {
		d.blame("hypervisor.machine", fmt.Sprintf("%q: Cloud Hypervisor has one machine, without a name", h.Machine), "\"\"")
	}
	if h.CPUModel != "" && h.CPUModel != "host" {
		d.blame("hypervisor.cpu_model", fmt.Sprintf("%q: Cloud Hypervisor shows guests the host's processor", h.CPUModel),
			"\"\" or \"host\"")
	}
	if h.BlockBus != "virtio-blk" {
		d.blame("hypervisor.block_bus", fmt.Sprintf("%q: Cloud Hypervisor has virtio-blk only", h.BlockBus), "\"virtio-blk\"")
	}
	if h.HotplugPorts != 0 {
		d.blame("hypervisor.hotplug_ports", "Cloud Hypervisor plugs devices into its root bus and has no ports", "0")
	}
	if h.Firmware != "" && h.Platform == "none" {
		d.blame("hypervisor.firmware", "on platform \"none\" Cloud Hypervisor would boot it instead of the kernel", "\"\"")
	}
}
