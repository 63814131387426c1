// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/bzimage"
)

// MaxCmdline is the longest command line that x86 Linux takes (COMMAND_LINE_SIZE without the NUL); of a longer one it
// sees the beginning, though all of it is measured.
const MaxCmdline = 2047

// CheckBoot refuses a boot chain with which a confidential VM would not start, or would start something that nothing
// vouches for: files that are no kernel for it, an initrd that does not fit into its memory (0: unknown), a command line
// that the kernel cuts off, on TDX a kernel that measures neither. A doubt is what cannot be told from the files.
func CheckBoot(spec hypervisor.VMSpec) (doubt, err error) {
	if spec.TEE == hypervisor.TEENone {
		return nil, nil
	}
	doubt, err = checkBoot(spec)
	if err != nil {
		err = fmt.Errorf("platform %s: %w", spec.TEE, err)
	}
	return doubt, err
}

func checkBoot(spec hypervisor.VMSpec) (doubt, err error) {
	b := spec.Boot
	if len(b.Cmdline) > MaxCmdline {
		return nil, fmt.Errorf("kernel command line of %d bytes: the kernel takes %d", len(b.Cmdline), MaxCmdline)
	}
	if b.Kernel == nil || b.Initrd == nil {
		return nil, errors.New("the boot chain has no kernel or no initrd, so nothing vouches for the guest")
	}
	k, err := ParseKernel(b.Kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", b.Kernel.Name(), err)
	}
	size, err := sizeOf(b.Initrd)
	if err == nil {
		err = k.Initrd(size, spec.MemoryMiB<<20)
	}
	if err != nil {
		return nil, fmt.Errorf("initrd %s: %w", b.Initrd.Name(), err)
	}
	var magic [4]byte
	if b.Firmware != nil {
		_, _ = b.Firmware.ReadAt(magic[:], 0) // what is wrong with the firmware is told by others
	}
	if !k.EFI && !isIGVM(magic[:]) {
		return nil, fmt.Errorf("kernel %s: has no EFI stub for x86-64, by which OVMF starts it", b.Kernel.Name())
	}
	if spec.TEE != hypervisor.TEETDX {
		return nil, nil
	}
	doubt, err = k.RTMR2()
	for _, e := range []*error{&doubt, &err} {
		if *e != nil {
			*e = fmt.Errorf("kernel %s: %w", b.Kernel.Name(), *e)
		}
	}
	return doubt, err
}

// ParseKernel reads the headers of a kernel without moving the descriptor's offset.
func ParseKernel(f *os.File) (bzimage.Kernel, error) {
	size, err := sizeOf(f)
	if err != nil {
		return bzimage.Kernel{}, err
	}
	head := make([]byte, min(size, bzimage.HeadSize))
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, size), head); err != nil {
		return bzimage.Kernel{}, err
	}
	return bzimage.Parse(head, size)
}

// sizeOf is the size of a regular file; others, such as /dev/zero, may never end.
func sizeOf(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, errors.New("is not a regular file")
	}
	return st.Size(), nil
}
