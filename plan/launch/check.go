// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/bzimage"
)

// MaxCmdline is the longest command line that x86 Linux takes (COMMAND_LINE_SIZE without the NUL); of a longer one it
// sees the beginning, though all of it is measured.
const MaxCmdline = 2047

// Head has a file's size and first bytes.
type Head struct {
	Name  string // for errors; empty: there is no such file
	Size  int64
	Bytes []byte
}

// Heads are those of a boot chain: bzimage.HeadSize bytes of the kernel, none of the initrd, four of the firmware.
type Heads struct{ Kernel, Initrd, Firmware Head }

// Check refuses a boot chain with which a confidential VM would not start, or would start something that nothing
// vouches for: files that are no kernel for it, an initrd that does not fit into its memory (0: unknown), a command
// line that the kernel cuts off, on TDX a kernel that measures neither. A doubt is a check that the files do not allow.
func Check(v hypervisor.VMSpec, h Heads) (doubt, err error) {
	if !v.Measured() {
		return nil, nil
	}
	doubt, err = check(v, h)
	if err != nil {
		err = fmt.Errorf("platform %s: %w", cmp.Or(string(v.TEE), configs.PlatformVTPM), err)
	}
	return doubt, err
}

func check(v hypervisor.VMSpec, h Heads) (doubt, err error) {
	if n := len(v.Boot.Cmdline); n > MaxCmdline {
		return nil, fmt.Errorf("kernel command line of %d bytes: the kernel takes %d", n, MaxCmdline)
	}
	if h.Kernel.Name == "" || h.Initrd.Name == "" {
		return nil, errors.New("the boot chain has no kernel or no initrd, so nothing vouches for the guest")
	}
	k, err := bzimage.Parse(h.Kernel.Bytes, h.Kernel.Size)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", h.Kernel.Name, err)
	}
	if err := k.Initrd(h.Initrd.Size, v.MemoryMiB<<20); err != nil {
		return nil, fmt.Errorf("initrd %s: %w", h.Initrd.Name, err)
	}
	if !k.EFI && !isIGVM(h.Firmware.Bytes) {
		return nil, fmt.Errorf("kernel %s: has no EFI stub for x86-64, by which OVMF starts it", h.Kernel.Name)
	}
	if v.TEE != hypervisor.TEETDX {
		return nil, nil
	}
	doubt, err = k.RTMR2()
	for _, e := range []*error{&doubt, &err} {
		if *e != nil {
			*e = fmt.Errorf("kernel %s: %w", h.Kernel.Name, *e)
		}
	}
	return doubt, err
}
