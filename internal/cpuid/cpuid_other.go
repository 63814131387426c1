// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

// Package cpuid reads the processor's features.
package cpuid

// Regs are the four registers of an answer.
type Regs struct{ EAX, EBX, ECX, EDX uint32 }

// Query answers zeros: there is no such instruction.
func Query(leaf, sub uint32) Regs { return Regs{} }
