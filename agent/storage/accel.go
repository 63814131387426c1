// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import "github.com/coco-shim/coco/internal/cpuid"

// Modules by which the processor does what the kernel has slower code for. One that is missing costs nothing but time.
const (
	fastAES  = "aesni_intel"
	fastHash = "sha256_ssse3"
)

// hasSHA says whether the processor has instructions for SHA-256: leaf 7, EBX bit 29 (Intel SDM volume 2, CPUID). With
// none of them, as in QEMU's older emulation, the module would hash with vectors, which an emulator does slower still.
var hasSHA = cpuid.Query(7, 0).EBX&(1<<29) != 0

// accelerateVerity makes the check of layers opened from now on as fast as the processor can.
func (m *Manager) accelerateVerity() {
	if m.Load != nil && hasSHA {
		_ = m.Load(fastHash) // dm-verity takes what there is
	}
}
