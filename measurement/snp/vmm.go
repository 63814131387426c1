// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coco-shim/coco/measurement/ovmf"
)

// VMM names the hypervisor whose launch order and initial processor state are reproduced.
type VMM uint8

// The known hypervisors.
const (
	QEMU       VMM = iota // QEMU on KVM with KVM_SEV_INIT2 (Linux 6.10 and later; always so for upstream SNP)
	QEMULegacy            // QEMU on older kernels: floating-point control words are 0
	EC2                   // Amazon EC2 since April 2026
	EC22023               // Amazon EC2 before
	GCE                   // Google Compute Engine
)

var vmmNames = []string{"qemu", "qemu-legacy", "ec2", "ec2-2023", "gce"}

// String returns the name that ParseVMM reads.
func (v VMM) String() string {
	if int(v) < len(vmmNames) {
		return vmmNames[v]
	}
	return fmt.Sprintf("vmm %d", uint8(v))
}

// ParseVMM returns the VMM of a name; the empty name is QEMU.
func ParseVMM(s string) (VMM, error) {
	if s == "" {
		return QEMU, nil
	}
	if i := slices.Index(vmmNames, s); i >= 0 {
		return VMM(i), nil //nolint:gosec // a handful
	}
	return 0, fmt.Errorf("unknown vmm %q; known are %s", s, strings.Join(vmmNames, ", "))
}

func (v VMM) qemu() bool { return v == QEMU || v == QEMULegacy }
func (v VMM) ec2() bool  { return v == EC2 || v == EC22023 }

// sectionType returns as what the hypervisor adds the pages of a metadata section without
// kernel hashes.
func (v VMM) sectionType(t ovmf.SectionType) (pageType, error) {
	switch t {
	case ovmf.SecMem:
		if v == GCE {
			return pageUnmeasured, nil
		}
		return pageZero, nil
	case ovmf.Secrets:
		return pageSecrets, nil
	case ovmf.CPUID:
		return pageCPUID, nil
	case ovmf.SVSMCAA, ovmf.KernelHashes:
		return pageZero, nil
	}
	if v.qemu() { // target/i386/sev.c: every type that it does not know is a zero page
		return pageZero, nil
	}
	return 0, fmt.Errorf("nothing is known of how %s treats sections of %s", v, t)
}
