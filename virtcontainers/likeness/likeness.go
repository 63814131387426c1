// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package likeness decides whether two pods get the same VM: by a digest over every input of the launch, measured or
// not, and over the whole configuration.
package likeness

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
)

// kind is all that makes two VMs different for their pods, but for what a pod gets by hot-plug.
type kind struct {
	Format     int
	VM         hypervisor.VMSpec // without name and files
	Config     configs.Config
	Rehearse   *configs.Config
	Initdata   string   // digest of the whole document, as the guest gets it
	Files      []string // the boot chain, parts of the guest image, the programs of VMM and shim
	Namespaces []string // of this process
}

// Of has the inputs.
type Of struct {
	VM       hypervisor.VMSpec
	Config   configs.Config
	Rehearse *configs.Config // nil: none
	Initdata *os.File        // as the guest gets it; nil: none
	Files    []*os.File      // the boot chain and parts of the guest image
}

// Key is the digest.
func (o Of) Key() (string, error) {
	k := kind{Format: 1, VM: o.VM, Config: o.Config, Rehearse: o.Rehearse}
	k.VM.ID, k.VM.Blocks = "", nil
	k.VM.Boot.Kernel, k.VM.Boot.Initrd, k.VM.Boot.Firmware = nil, nil, nil
	if o.Initdata != nil {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(o.Initdata, 0, 1<<62)); err != nil {
			return "", fmt.Errorf("initdata: %w", err)
		}
		k.Initdata = hex.EncodeToString(h.Sum(nil))
	}
	for _, f := range o.Files {
		st, err := f.Stat()
		if err != nil {
			return "", err
		}
		k.Files = append(k.Files, identity(f.Name(), st))
	}
	for _, name := range []string{o.Config.Hypervisor.Path, o.Config.VTPM.Program, "/proc/self/exe"} {
		st, err := os.Stat(name)
		if err != nil {
			k.Files = append(k.Files, name) // the launch fails, or looks for it elsewhere
			continue
		}
		k.Files = append(k.Files, identity(name, st))
	}
	for _, ns := range []string{"mnt", "net", "pid"} {
		name, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return "", err
		}
		k.Namespaces = append(k.Namespaces, name)
	}
	text, err := json.Marshal(k)
	if err != nil {
		return "", fmt.Errorf("describe the VM: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// identity tells a file from every other one while nobody writes to it.
func identity(name string, st os.FileInfo) string {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return name
	}
	return fmt.Sprint(name, " ", s.Dev, " ", s.Ino, " ", s.Size, " ", s.Mtim, " ", s.Ctim)
}
