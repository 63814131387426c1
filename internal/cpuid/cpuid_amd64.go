// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cpuid reads the processor's features.
package cpuid

// Regs are the four registers of an answer.
type Regs struct{ EAX, EBX, ECX, EDX uint32 }

func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// Query is the CPUID instruction. A leaf beyond what the processor has answers zeros.
func Query(leaf, sub uint32) Regs {
	if top, _, _, _ := cpuid(leaf&0xf0000000, 0); top < leaf {
		return Regs{}
	}
	a, b, c, d := cpuid(leaf, sub)
	return Regs{a, b, c, d}
}
