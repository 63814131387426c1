// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
)

const (
	slots     = 32 // of the PCI bus; the first is the host bridge
	maxSerial = 20 // of a virtio disk
	minMTU    = 1280
)

// vmm is the VMM and its VM. Its methods are called by one goroutine at a time, the server's; the
// guest's own steps take the server's lock, too.
type vmm struct {
	config Config

	emu    sync.Mutex
	events *os.File // guarded by emu
	sent   int      // guarded by emu

	vm      *clhapi.VmConfig
	nets    []clhapi.NetConfig
	taps    map[string][]*os.File
	running bool
	failed  bool                // a boot failed after the VM was made: it can be neither booted nor created again
	locks   map[string]*os.File // of disks, by name
	leaving []string            // devices that the guest is late to let go of
	console *os.File
	vsock   net.Listener
	places  [slots]string // names of devices
	opened  []FileID      // since the request began
	allowed []string      // by Landlock; nil: everything
	real    *standIn      // nil: the guest is played
}

func newVMM(c Config, events *os.File) *vmm {
	if c.Release == 0 {
		c.Release = 54
	}
	return &vmm{config: c, events: events, taps: map[string][]*os.File{}, locks: map[string]*os.File{}}
}

// event writes an event, indented and with an empty line behind it, as the real one does.
func (v *vmm) event(source, name string, properties map[string]string) {
	b, err := json.MarshalIndent(map[string]any{
		"timestamp": map[string]int{"secs": 0, "nanos": 1}, "source": source, "event": name, "properties": properties,
	}, "", "  ")
	if err != nil {
		fatal(err)
	}
	v.emu.Lock()
	defer v.emu.Unlock()
	if v.sent++; v.config.BadEvents && v.sent%2 == 1 {
		b = b[:len(b)/2]
	}
	_, _ = v.events.Write(append(b, "\n\n"...)) // the real one does not care either
}

// class is why a call is refused, as far as any release tells by its status.
type class int

const (
	internal  class = iota // 500 everywhere
	absent                 // there is no VM: 404 from release 53 on
	unknown                // there is no such device: 404 from 54 on
	taken                  // an identifier is not unique: 409 from 54 on
	malformed              // the description is not valid: 400 from 54 on
)

// status is what a release answers to a refusal.
func (c class) status(release int) int {
	switch {
	case c == absent && release >= 53:
		return http.StatusNotFound
	case release < 54:
	case c == unknown:
		return http.StatusNotFound
	case c == taken:
		return http.StatusConflict
	case c == malformed:
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// refused is an error as the API server words it.
func (v *vmm) refused(c class, reasons ...string) answer {
	return answer{c.status(v.config.Release), append([]string{"Error from API"}, reasons...)}
}

var done = answer{status: http.StatusNoContent}

// gets are the calls that only ask.
var gets = map[string]bool{"vmm.ping": true, "vm.info": true}

// handle carries out a call.
func (v *vmm) handle(method, call string, body []byte, files []*os.File) answer {
	want := http.MethodPut
	if gets[call] {
		want = http.MethodGet
	}
	if method != want {
		return answer{http.StatusBadRequest, []string{"Bad Request"}}
	}
	if len(files) > 0 && v.config.NoFiles {
		return answer{http.StatusBadRequest, []string{"Error from API", "descriptors are not supported"}}
	}
	if call == v.config.EjectOn {
		v.ejectLate()
	}
	switch call {
	case "vmm.ping":
		return v.ping()
	case "vm.create":
		return v.create(body)
	case "vm.boot":
		return v.boot()
	case "vm.info":
		return v.info()
	case "vm.shutdown":
		return v.shutdown()
	case "vm.delete":
		return v.remove()
	case "vm.add-disk":
		return v.addDisk(body)
	case "vm.add-net":
		return v.addNet(body, files)
	case "vm.remove-device":
		return v.removeDevice(body)
	case "vmm.shutdown":
		v.remove()
		v.event("vmm", "shutdown", nil)
		return answer{status: http.StatusOK} // without a body, whatever the VMM's description says
	}
	return answer{http.StatusNotFound, []string{"Not Found"}}
}

func (v *vmm) ping() answer {
	r := clhapi.VmmPingResponse{
		Version: v.config.Version, BuildVersion: "v" + v.config.Version, Pid: int64(os.Getpid()),
		Features: v.config.Features,
	}
	if r.Version == "" {
		r.Version, r.BuildVersion = fmt.Sprintf("%d.0.0", v.config.Release), fmt.Sprintf("v%d.0", v.config.Release)
	}
	if r.Features == nil {
		r.Features = []string{"fw_cfg", "igvm", "io_uring", "kvm", "sev_snp"}
	}
	return answer{http.StatusOK, r}
}

// create stores the description and opens the consoles, no more.
func (v *vmm) create(body []byte) answer {
	var c clhapi.VmConfig
	if err := json.Unmarshal(body, &c); err != nil {
		return answer{http.StatusBadRequest, []string{"Failed to deserialize JSON", err.Error()}}
	}
	if v.vm != nil {
		return v.refused(internal, "The VM could not be created", "VM is already created")
	}
	v.vm = &c
	var err error
	if c.Serial.Mode == clhapi.File {
		if v.console, err = os.OpenFile(c.Serial.File, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666); err != nil {
			return v.refused(internal, "The VM could not be created", "Error creating console devices", err.Error())
		}
	}
	if err := v.confine(); err != nil {
		return v.refused(internal, "The VM could not be created", "Failed to apply landlock config during vm_create",
			err.Error())
	}
	return done
}

// confine applies the rules of Landlock, as far as a fake needs them: each names a file or directory
// of a file system, and nothing else can be opened later.
func (v *vmm) confine() error {
	if !v.vm.LandlockEnable {
		return nil
	}
	paths := []string{v.vm.Payload.Igvm, v.vm.Payload.Kernel, v.vm.Payload.Initramfs, v.vm.Serial.File, v.vm.Rng.Src}
	for _, d := range v.vm.Disks {
		paths = append(paths, d.Path)
	}
	for _, r := range v.vm.LandlockRules {
		paths = append(paths, r.Path)
	}
	for _, p := range paths {
		if p == "" {
			continue
		}
		real, err := filepath.EvalSymlinks(p)
		if link, lerr := os.Readlink(p); lerr == nil && strings.HasPrefix(p, "/proc/self/fd/") &&
			!strings.HasPrefix(link, "/memfd:") {
			real, err = link, nil // has a place, also without a name or outside of the root
		}
		if err != nil {
			return fmt.Errorf("error creating/adding/restricting ruleset: %s: %w", p, err)
		}
		v.allowed = append(v.allowed, real)
	}
	return nil
}

// mayOpen tells whether Landlock lets a path be opened. The way through another process is closed.
func (v *vmm) mayOpen(path string) error {
	if v.allowed == nil || strings.HasPrefix(path, "/proc/self/") {
		return nil
	}
	for _, a := range v.allowed {
		if rel, err := filepath.Rel(a, path); err == nil && filepath.IsLocal(rel) {
			return nil
		}
	}
	return &os.PathError{Op: "open", Path: path, Err: os.ErrPermission}
}

// problem is what the VMM's validation says against a description.
func (v *vmm) problem(c *clhapi.VmConfig) (string, class) {
	p := c.Payload
	snp := c.Platform != nil && c.Platform.SevSnp
	ids := map[string]bool{c.Vsock.Id: true}
	var all []string
	for _, d := range c.Disks {
		all = append(all, d.Id)
		if len(d.Serial) > maxSerial {
			return fmt.Sprintf("Block device serial length (%d) exceeds maximum allowed length (%d)", len(d.Serial),
				maxSerial), malformed
		}
	}
	for _, n := range v.nets {
		all = append(all, n.Id)
		if taps, ok := v.taps[n.Id]; ok && 2*len(taps) != n.NumQueues {
			return fmt.Sprintf("Number of queues (%d) to virtio_net does not match the number of input FDs (%d)", n.NumQueues,
				2*len(taps)), malformed
		}
		if n.NumQueues/2 > c.Cpus.BootVcpus {
			return "Number of vCPUs is insufficient for the number of queues", malformed
		}
		if n.Mtu != 0 && n.Mtu < minMTU {
			return fmt.Sprintf("Provided MTU %d is lower than %d (expected by VIRTIO specification)", n.Mtu, minMTU), malformed
		}
		if n.Mtu != 0 && !has(unix.CAP_NET_ADMIN) { // the real one tells when it makes the device
			return fmt.Sprintf("Using existing tap: ioctl (%d) failed: %v", unix.SIOCSIFMTU, unix.EPERM), internal
		}
	}
	for _, id := range all {
		if ids[id] {
			return fmt.Sprintf("Identifier %s is not unique", id), taken
		}
		if strings.HasPrefix(id, "__") {
			return fmt.Sprintf("Identifier %s is not valid", id), malformed
		}
		ids[id] = true
	}
	switch {
	case p.Kernel == "" && p.Igvm == "":
		return "No bootitem provided: neither firmware nor kernel", malformed
	case snp && p.Igvm == "":
		return "SEV-SNP requires an IGVM file", malformed
	case snp && p.HostData != "" && len(p.HostData) != 64:
		return "Invalid host data format", malformed
	case c.Cpus.MaxVcpus < c.Cpus.BootVcpus:
		return "Maximum number of vCPUs lower than the number at boot", malformed
	}
	return "", internal
}

// has tells whether the process has one of the first 32 capabilities.
func has(capability int) bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[0].Effective&(1<<capability) != 0
}

// open opens a file as the VMM would, and remembers which it was.
func (v *vmm) open(path string, write bool) error {
	if err := v.mayOpen(path); err != nil {
		return err
	}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1)); err != nil && err != io.EOF {
		return err
	}
	id, err := fileID(f)
	v.opened = append(v.opened, id)
	return err
}

func (v *vmm) boot() answer {
	const what = "The VM could not boot"
	if v.running || v.failed {
		return v.refused(internal, what, "VM is already created")
	}
	v.event("vm", "booting", nil)
	if v.vm == nil {
		return v.refused(absent, what, "VM config is missing")
	}
	if p, c := v.problem(v.vm); p != "" {
		return v.refused(c, what, "Failed to validate config", p)
	}
	if a := v.build(what); a.status != done.status {
		return a
	}
	for _, d := range v.vm.Disks {
		if err := v.lock(d); err != nil {
			v.failed = true
			return v.refused(internal, what, "Error from device manager", "Cannot lock images of all block devices", err.Error())
		}
	}
	start := v.startGuest
	if v.config.QEMU != "" {
		start = v.startReal
	}
	if err := start(); err != nil {
		return v.refused(internal, what, "Error from device manager", "Cannot create virtio-vsock device", err.Error())
	}
	v.running = true
	v.event("vm", "booted", nil)
	return done
}

// build makes the VM: it opens what the description names, and gives each device its place.
func (v *vmm) build(what string) answer {
	for _, path := range []string{v.vm.Payload.Igvm, v.vm.Payload.Kernel, v.vm.Payload.Initramfs} {
		if path == "" {
			continue
		}
		if err := v.open(path, false); err != nil {
			return v.refused(internal, what, "Cannot open the payload", err.Error())
		}
	}
	var names []string
	for _, d := range v.vm.Disks {
		if err := v.open(d.Path, !d.Readonly); err != nil {
			return v.refused(internal, what, "Error from device manager", "Failed opening disk "+d.Path, err.Error())
		}
		names = append(names, d.Id)
	}
	for _, n := range v.nets {
		if _, ok := v.taps[n.Id]; !ok {
			return v.refused(internal, what, "Error from device manager", "Cannot create virtio-net device",
				"Failed to open taps")
		}
		names = append(names, n.Id)
	}
	names = append(names, "__rng", v.vm.Vsock.Id)
	if v.vm.Pvpanic {
		names = append(names, "__pvpanic")
	}
	for _, n := range names {
		if _, err := v.place(n); err != nil {
			return v.refused(internal, what, err.Error())
		}
	}
	return done
}

// lock takes the lock on a disk's file that keeps it from being written by two VMs at a time. It belongs
// to an open file description, so also two disks of one VM exclude each other.
func (v *vmm) lock(d clhapi.DiskConfig) error {
	flags, kind := os.O_RDWR, int16(unix.F_WRLCK)
	if d.Readonly {
		flags, kind = os.O_RDONLY, unix.F_RDLCK
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind}); err != nil {
		_ = f.Close() // nothing was written
		return fmt.Errorf("the disk image %s is locked by another: %w", d.Path, err)
	}
	v.locks[d.Id] = f
	return nil
}

// unlock closes a removed disk's file.
func (v *vmm) unlock(name string) {
	if f := v.locks[name]; f != nil {
		_ = f.Close() // a fake
		delete(v.locks, name)
	}
}

// place gives a device a slot on the bus.
func (v *vmm) place(name string) (int, error) {
	for i := 1; i < slots; i++ {
		if v.places[i] == "" {
			v.places[i] = name
			return i, nil
		}
	}
	return 0, errors.New("could not find an available device slot on the PCI bus")
}

func (v *vmm) bdf(slot int) string {
	if v.config.WrongPlaces {
		return fmt.Sprintf("0001:00:%02x.0", slot)
	}
	return fmt.Sprintf("0000:00:%02x.0", slot)
}

func (v *vmm) info() answer {
	if v.vm == nil {
		return v.refused(absent, "The VM info is not available", "VM is not created")
	}
	r := map[string]any{"config": v.vm, "state": clhapi.Created, "memory_actual_size": v.vm.Memory.Size}
	if v.running {
		tree := map[string]any{}
		for i, name := range v.places {
			if name == "" {
				continue
			}
			parent := "_virtio-pci-" + name
			tree[name] = map[string]any{"id": name, "resources": []any{}, "children": []string{}, "parent": parent}
			tree[parent] = map[string]any{"id": parent, "resources": []any{}, "children": []string{name}, "pci_bdf": v.bdf(i)}
		}
		r["state"], r["device_tree"] = clhapi.Running, tree
	}
	return answer{http.StatusOK, r}
}
