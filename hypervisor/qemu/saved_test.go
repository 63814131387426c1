// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/initdata"
)

// host is a directory with the files that a VM is made of.
type host struct {
	t              *testing.T
	binary         string
	kernel, initrd string
}

func newHost(t *testing.T) host {
	t.Helper()
	dir := t.TempDir()
	h := host{t, filepath.Join(dir, "qemu"), filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initrd.img")}
	for _, f := range []string{h.binary, h.kernel, h.initrd} {
		h.write(f, "a file")
	}
	return h
}

func (h host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// replace puts another file of the same content in the place of one, as an update does, with its own times.
func (h host) replace(name string) {
	h.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(name+".new", string(text))
	old := time.Now().Add(-24 * time.Hour) // from a package that was built yesterday
	if err := errors.Join(os.Chtimes(name+".new", old, old), os.Rename(name+".new", name)); err != nil {
		h.t.Fatal(err)
	}
}

// key is the key of the templates of a VM on this host.
func (h host) key(change func(*hypervisor.VMSpec)) string {
	h.t.Helper()
	spec := plainSpec()
	for name, to := range map[string]**os.File{h.kernel: &spec.Boot.Kernel, h.initrd: &spec.Boot.Initrd} {
		f, err := os.Open(name)
		if err != nil {
			h.t.Fatal(err)
		}
		defer f.Close()
		*to = f
	}
	if change != nil {
		change(&spec)
	}
	key, summary, err := New(Options{Path: h.binary}).Kind(h.t.Context(), spec)
	if err != nil || summary == "" {
		h.t.Fatalf("Kind() = %q, %v", summary, err)
	}
	return key
}

// A VM starts only from a template of the very same VM. Devices of a pod, which are plugged in later, are not part
// of that.
func TestTemplatesAreOfTheSameVM(t *testing.T) {
	h := newHost(t)
	first := h.key(nil)
	for name, change := range map[string]func(*hypervisor.VMSpec){
		"another pod":   func(s *hypervisor.VMSpec) { s.ID = "pod2" },
		"other disks":   func(s *hypervisor.VMSpec) { s.Blocks = s.Blocks[:1] },
		"no network":    func(s *hypervisor.VMSpec) { s.NICs = nil },
		"a new timeout": func(s *hypervisor.VMSpec) { s.BootTimeout = time.Hour },
	} {
		if h.key(change) != first {
			t.Errorf("%s: another template", name)
		}
	}
	seen := map[string]string{first: "the VM itself"}
	differs := func(name, key string) {
		if other := seen[key]; other != "" {
			t.Errorf("%s: the template of %s", name, other)
		}
		seen[key] = name
	}
	for name, change := range map[string]func(*hypervisor.VMSpec){
		"more memory":     func(s *hypervisor.VMSpec) { s.MemoryMiB += 128 },
		"more processors": func(s *hypervisor.VMSpec) { s.CPU.Count++ },
		"another model":   func(s *hypervisor.VMSpec) { s.CPU.Model = "Haswell" },
		"command line":    func(s *hypervisor.VMSpec) { s.Boot.Cmdline += " x" },
		"more ports":      func(s *hypervisor.VMSpec) { s.HotplugPorts++ },
	} {
		differs(name, h.key(change))
	}
	for name, file := range map[string]string{"QEMU": h.binary, "kernel": h.kernel, "initramfs": h.initrd} {
		h.replace(file)
		differs("another "+name, h.key(nil))
		h.write(file, "A file")
		differs(name+" written to", h.key(nil))
	}
}

func TestVMsThatStartFromNoTemplate(t *testing.T) {
	for want, change := range map[string]func(*hypervisor.VMSpec){
		"reads its initdata when it boots": func(s *hypervisor.VMSpec) {
			s.Blocks = append(s.Blocks, hypervisor.Block{ID: initdata.DiskID, File: unopened()})
		},
		"live files": func(s *hypervisor.VMSpec) {
			s.HostFiles = &hypervisor.HostFiles{Tag: "live", Socket: unopened()}
		},
		"cannot be copied": func(s *hypervisor.VMSpec) { s.TEE = hypervisor.TEESNP },
		"of platform \"\"": func(s *hypervisor.VMSpec) { s.Boot.TPM = &hypervisor.TPM{} },
		"PCIe ports": func(s *hypervisor.VMSpec) {
			s.HotplugPorts = 0
		},
	} {
		spec := plainSpec()
		change(&spec)
		if err := clonable(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
	if err := clonable(plainSpec()); err != nil {
		t.Error(err)
	}
}

// A VM of a template has a port more than one that boots: the pod's interface takes one.
func TestAVMOfATemplateHasRoomForItsInterface(t *testing.T) {
	for ports, want := range map[int]int{0: 0, 1: 2, 3: 4, maxPorts: maxPorts} {
		if got := bare(hypervisor.VMSpec{HotplugPorts: ports, NICs: make([]hypervisor.NIC, 1)}); got.HotplugPorts != want ||
			len(got.NICs) > 0 {
			t.Errorf("of %d ports: %d, and %d interfaces; want %d, and none", ports, got.HotplugPorts, len(got.NICs), want)
		}
	}
}
