// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"

	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
)

// added checks a device and, when the VM runs, gives it a place.
func (v *vmm) added(what, name string, with clhapi.VmConfig, undo func()) answer {
	if p, status := v.problem(&with); p != "" {
		undo()
		return refused(status, what, "Failed to validate config", p)
	}
	if !v.running {
		return done
	}
	slot, err := v.place(name)
	if err != nil {
		undo()
		return refused(http.StatusInternalServerError, what, "Error from device manager", err.Error())
	}
	if v.real != nil {
		if err := v.real.plug(name, slot, &with, v.taps[name]); err != nil {
			v.places[slot] = ""
			undo()
			return refused(http.StatusInternalServerError, what, "Error from device manager", err.Error())
		}
	}
	return answer{http.StatusOK, clhapi.PciDeviceInfo{Id: name, Bdf: v.bdf(slot)}}
}

var notCreated = "VM is not created"

func (v *vmm) addDisk(body []byte) answer {
	const what = "The disk could not be added to the VM"
	var d clhapi.DiskConfig
	if err := json.Unmarshal(body, &d); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	if v.vm == nil {
		return refused(http.StatusNotFound, what, notCreated)
	}
	if v.running {
		if err := v.open(d.Path, !d.Readonly); err != nil {
			return refused(http.StatusInternalServerError, what, "Error from device manager", "Failed opening disk "+d.Path, err.Error())
		}
	}
	before := *v.vm
	v.vm.Disks = append(slices.Clone(before.Disks), d)
	return v.added(what, d.Id, *v.vm, func() { v.vm.Disks = before.Disks })
}

func (v *vmm) addNet(body []byte, files []*os.File) answer {
	const what = "The network device could not be added to the VM"
	var n clhapi.NetConfig
	if err := json.Unmarshal(body, &n); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	if v.vm == nil {
		return refused(http.StatusNotFound, what, notCreated)
	}
	before := v.nets
	taps, had := v.taps[n.Id]
	v.nets = append(slices.Clone(before), n)
	if len(files) > 0 {
		v.taps[n.Id] = files
	}
	return v.added(what, n.Id, *v.vm, func() {
		if v.nets = before; had {
			v.taps[n.Id] = taps
		} else {
			delete(v.taps, n.Id)
		}
	})
}

func (v *vmm) addDevice(body []byte) answer {
	const what = "The device could not be added to the VM"
	var d clhapi.DeviceConfig
	if err := json.Unmarshal(body, &d); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	switch {
	case v.vm == nil:
		return refused(http.StatusNotFound, what, notCreated)
	case slices.Contains(v.places[:], d.Id):
		return refused(http.StatusConflict, what, "Failed to validate config", "Identifier "+d.Id+" is not unique")
	}
	return v.added(what, d.Id, *v.vm, func() {})
}

func (v *vmm) removeDevice(body []byte) answer {
	const what = "The device could not be removed from the VM"
	var d clhapi.VmRemoveDevice
	if err := json.Unmarshal(body, &d); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	slot := slices.Index(v.places[:], d.Id)
	switch {
	case v.vm == nil:
		return refused(http.StatusNotFound, what, notCreated)
	case d.Id == "" || slot < 0:
		return refused(http.StatusNotFound, what, "Error from device manager", "Unknown device ID: "+d.Id)
	case v.config.KeepDevices:
		return done
	}
	if v.real != nil {
		if err := v.real.unplug(d.Id); err != nil {
			return refused(http.StatusInternalServerError, what, "Error from device manager", err.Error())
		}
	}
	// The guest lets go of it at once.
	v.places[slot] = ""
	v.vm.Disks = slices.DeleteFunc(v.vm.Disks, func(o clhapi.DiskConfig) bool { return o.Id == d.Id })
	v.nets = slices.DeleteFunc(v.nets, func(o clhapi.NetConfig) bool { return o.Id == d.Id })
	for _, f := range v.taps[d.Id] {
		_ = f.Close() // a fake
	}
	delete(v.taps, d.Id)
	if !v.config.SilentEject {
		v.event("vm", "device-removed", map[string]string{"id": "_virtio-pci-" + d.Id, "bdf": v.bdf(slot)})
	}
	return done
}
