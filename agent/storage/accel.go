// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import "github.com/coco-shim/coco/internal/cpuid"

// Modules that use the processor's instructions for AES and SHA-256. Without them the kernel's generic code is slower.
const (
	fastAES  = "aesni_intel"
	fastHash = "sha256_ssse3"
)

// hasSHA reports whether the processor has instructions for SHA-256: leaf 7, EBX bit 29 (Intel SDM volume 2, CPUID).
// Without them, as in QEMU's older emulation, the module would use vector instructions, which are slower still there.
var hasSHA = cpuid.Query(7, 0).EBX&(1<<29) != 0

// accelerateVerity makes the check of layers opened from now on as fast as the processor can.
func (m *Manager) accelerateVerity() {
	if m.Load != nil && hasSHA {
		_ = m.Load(fastHash) // without it dm-verity uses the generic code
	}
}
