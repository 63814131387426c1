// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import "slices"

// vcpuGrid are the numbers of virtual CPUs that a VM has: few shapes, few launch digests.
var vcpuGrid = []int{1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}

// RoundVCPUs is the number of virtual CPUs of the VM of a pod that wants n, where limit is the most.
func RoundVCPUs(n, limit int) int {
	for _, g := range vcpuGrid {
		if g >= n {
			n = g
			break
		}
	}
	return min(n, limit)
}

// VCPUCounts lists all that RoundVCPUs gives for a limit.
func VCPUCounts(limit int) []int {
	var out []int
	for n := 1; n <= limit; n++ {
		out = append(out, RoundVCPUs(n, limit))
	}
	return slices.Compact(out)
}
