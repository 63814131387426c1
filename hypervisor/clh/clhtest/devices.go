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
	if p, c := v.problem(&with); p != "" {
		undo()
		return v.refused(c, what, "Failed to validate config", p)
	}
	if !v.running {
		return done
	}
	slot, err := v.place(name)
	if err != nil {
		undo()
		return v.refused(internal, what, "Error from device manager", err.Error())
	}
	if v.real != nil {
		if err := v.real.plug(name, slot, &with, v.taps[name]); err != nil {
			v.places[slot] = ""
			undo()
			return v.refused(internal, what, "Error from device manager", err.Error())
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
		return v.refused(absent, what, notCreated)
	}
	if v.running {
		if err := v.open(d.Path, !d.Readonly); err != nil {
			return v.refused(internal, what, "Error from device manager", "Cannot open disk path", err.Error())
		}
		if _, ok := v.locks[d.Id]; !ok {
			if err := v.lock(d); err != nil {
				return v.refused(internal, what, "Error from device manager", "Failed to lock disk image", err.Error())
			}
		}
	}
	before := *v.vm
	had := slices.ContainsFunc(before.Disks, func(o clhapi.DiskConfig) bool { return o.Id == d.Id })
	v.vm.Disks = append(slices.Clone(before.Disks), d)
	return v.added(what, d.Id, *v.vm, func() {
		if v.vm.Disks = before.Disks; !had {
			v.unlock(d.Id)
		}
	})
}

func (v *vmm) addNet(body []byte, files []*os.File) answer {
	const what = "The network device could not be added to the VM"
	var n clhapi.NetConfig
	if err := json.Unmarshal(body, &n); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	if v.vm == nil {
		return v.refused(absent, what, notCreated)
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

func (v *vmm) removeDevice(body []byte) answer {
	const what = "The device could not be removed from the VM"
	var d clhapi.VmRemoveDevice
	if err := json.Unmarshal(body, &d); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	slot := slices.Index(v.places[:], d.Id)
	switch {
	case v.vm == nil:
		return v.refused(absent, what, notCreated)
	case !v.running: // it is taken out of the description
		if !slices.Contains(v.described(), d.Id) {
			return v.refused(unknown, what, "No device to remove: "+d.Id)
		}
		v.forget(d.Id)
		return done
	case d.Id == "" || slot < 0:
		return v.refused(unknown, what, "Error from device manager",
			"Failed to find device corresponding to the given identifier")
	case v.config.KeepDevices:
		return done
	}
	if v.real != nil {
		if err := v.real.unplug(d.Id); err != nil {
			return v.refused(internal, what, "Error from device manager", err.Error())
		}
	}
	if v.config.EjectOn != "" {
		v.leaving = append(v.leaving, d.Id)
		return done
	}
	v.ejected(slot)
	return done
}

// ejectLate lets go of the devices that the guest was asked for before.
func (v *vmm) ejectLate() {
	for _, name := range v.leaving {
		if slot := slices.Index(v.places[:], name); slot >= 0 {
			v.ejected(slot)
		}
	}
	v.leaving = nil
}

// ejected is the guest's letting go of a device.
func (v *vmm) ejected(slot int) {
	name := v.places[slot]
	v.places[slot] = ""
	v.forget(name)
	if !v.config.SilentEject {
		v.event("vm", "device-removed", map[string]string{"id": name, "bdf": v.bdf(slot)})
	}
}

// described are the names of the disks and interfaces in the VM's description.
func (v *vmm) described() []string {
	var names []string
	for _, d := range v.vm.Disks {
		names = append(names, d.Id)
	}
	for _, n := range v.nets {
		names = append(names, n.Id)
	}
	return names
}

// forget takes a device out of the description, and closes its files.
func (v *vmm) forget(name string) {
	v.vm.Disks = slices.DeleteFunc(v.vm.Disks, func(o clhapi.DiskConfig) bool { return o.Id == name })
	v.nets = slices.DeleteFunc(v.nets, func(o clhapi.NetConfig) bool { return o.Id == name })
	for _, f := range v.taps[name] {
		_ = f.Close() // a fake
	}
	delete(v.taps, name)
	v.unlock(name)
}
