// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import "errors"

// OVMF and the kernel measure the same bytes into RTMRs and into the PCRs of a TPM, so package vtpm uses these, too.

// SecureBootEvents returns what firmware that has secure boot, and no keys, measures of its policy, in order.
func SecureBootEvents() [][]byte {
	var out [][]byte
	for _, v := range []variable{
		{guidGlobal, "SecureBoot", []byte{0}},
		{guidGlobal, "PK", nil},
		{guidGlobal, "KEK", nil},
		{guidImageSecurity, "db", nil},
		{guidImageSecurity, "dbx", nil},
	} {
		out = append(out, v.measured())
	}
	return out
}

// BootEvents returns what the firmware measures of its boot options, in order: their list, and each of them.
func (p Profile) BootEvents() ([][]byte, error) {
	out := [][]byte{nil}
	var errs []error
	for i, o := range p.BootOptions() {
		b, err := o.encode()
		errs = append(errs, err)
		out[0] = append(out[0], byte(i), 0)
		out = append(out, b)
	}
	return out, errors.Join(errs...)
}

// ShownKernel returns the kernel's file as the firmware gets it in a VM with so many bytes of memory.
func (p Profile) ShownKernel(kernel []byte, initrdSize, memory uint64) ([]byte, error) {
	if !p.KernelPatched() {
		return kernel, nil
	}
	return patchKernel(kernel, initrdSize, memory)
}

// LoadOptions returns the options that OVMF gives to a kernel with an initrd, as the kernel's EFI stub measures them.
func (p Profile) LoadOptions(cmdline string) []byte { return loadOptions(p, cmdline, true, false) }
