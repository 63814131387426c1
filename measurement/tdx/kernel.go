// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Offsets in the setup header of a bzImage (Linux, Documentation/arch/x86/boot.rst).
const (
	offHdrS        = 0x202
	offProtocol    = 0x206
	offLoader      = 0x210
	offLoadFlags   = 0x211
	offRamdisk     = 0x218
	offRamdiskSize = 0x21c
	offHeapEnd     = 0x224
	offCmdline     = 0x228
	offInitrdMax   = 0x22c
	offXLoadFlags  = 0x236
	setupEnd       = 0x268

	loadedHigh    = 1 << 0
	canUseHeap    = 1 << 7
	xlfAbove4G    = 1 << 1
	qemuLoader    = 0xb0
	qemuCmdline   = 0x20000 // where QEMU's loader puts the command line
	qemuSetup     = 0x10000
	qemuACPISpace = 0x28000 // kept free below 4 GiB by the pc machines
	minProtocol   = 0x202
)

// patchKernel returns the kernel as older QEMU shows it to the firmware: with the setup header filled
// in (x86_load_linux). The address of the initrd depends on the memory size.
func patchKernel(kernel []byte, initrdSize, memory uint64) ([]byte, error) {
	le := binary.LittleEndian
	if len(kernel) < setupEnd || string(kernel[offHdrS:offHdrS+4]) != "HdrS" {
		return nil, errors.New("kernel: is not a bzImage")
	}
	protocol := le.Uint16(kernel[offProtocol:])
	if protocol < minProtocol || kernel[offLoadFlags]&loadedHigh == 0 {
		return nil, fmt.Errorf("kernel: boot protocol %#x is older than anything that runs in a TD", protocol)
	}
	k := slices.Clone(kernel)
	k[offLoader] = qemuLoader
	k[offLoadFlags] |= canUseHeap
	le.PutUint16(k[offHeapEnd:], qemuCmdline-qemuSetup-0x200)
	le.PutUint32(k[offCmdline:], qemuCmdline)
	if initrdSize == 0 {
		return k, nil
	}
	limit := uint64(0x37ffffff)
	switch {
	case protocol >= 0x20c && le.Uint16(k[offXLoadFlags:])&xlfAbove4G != 0:
		limit = 1<<32 - 1
	case protocol >= 0x203:
		limit = uint64(le.Uint32(k[offInitrdMax:]))
	}
	low := below4G(memory)
	if low <= qemuACPISpace {
		return nil, fmt.Errorf("kernel: %d bytes of memory are too few", memory)
	}
	if limit >= low-qemuACPISpace {
		limit = low - qemuACPISpace - 1
	}
	if initrdSize >= limit {
		return nil, fmt.Errorf("kernel: an initrd of %d bytes does not fit below %#x", initrdSize, limit)
	}
	le.PutUint32(k[offRamdisk:], uint32(limit-initrdSize)&^(pageSize-1))
	le.PutUint32(k[offRamdiskSize:], uint32(initrdSize)) //nolint:gosec // below limit, which is below 2^32
	return k, nil
}

// loadOptions returns the options that OVMF gives to the kernel, as the kernel's EFI stub measures
// them: UTF-16 with a NUL, each byte of the command line one character.
func loadOptions(p Profile, cmdline string, initrd, shim bool) []byte {
	s := cmdline
	switch {
	case initrd && p.initrdFirst():
		s = "initrd=initrd " + cmdline
	case initrd:
		s = cmdline + " initrd=initrd"
	}
	if shim {
		s = "kernel " + s
	}
	b := make([]byte, 0, 2*len(s)+2)
	for i := range len(s) {
		b = append(b, s[i], 0)
	}
	return append(b, 0, 0)
}
