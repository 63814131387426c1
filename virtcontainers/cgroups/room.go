// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// minMilliCPU is the least processor time, in thousandths of a processor, with which a VMM can be expected to come up:
// booting takes some 3 s of it under emulation and half a second with KVM, and the VMM answers within seconds or is
// given up.
const minMilliCPU = 100

// WithRoom returns where a process that needs that much memory can be put: the OCI path itself, or, when
// a group on that path allows less, or hardly any processor time, a group of its own beside that one, named after the path's
// last part. why says what is short then.
//
// A pod's group has the sum of its containers' limits. The VM is larger by the guest's kernel, and what
// a RuntimeClass declares as overhead makes room for that. A pod without a RuntimeClass has no such
// room: the kernel would end its VMM as soon as the guest used what its containers were promised, and a VM of which
// all containers together may take a fiftieth of a processor would boot for minutes. So
// the VMM runs beside the group then, still below the limits of everything above it, and the guest alone
// holds the containers to their limits.
func WithRoom(hs []Hierarchy, ociPath string, need uint64) (place, why string, err error) {
	rel, err := relative(ociPath)
	if err != nil || rel == "" {
		return ociPath, "", err
	}
	parts := strings.Split(rel, "/")
	for i := range parts {
		above := filepath.Join(parts[:i+1]...)
		for _, h := range hs {
			dir := filepath.Join(h.Mount, above)
			switch {
			case memory(dir) < need:
				why = "less memory than its VM has"
			case milliCPU(dir) < minMilliCPU:
				why = "less processor time than a VM takes to boot"
			default:
				continue
			}
			// A kubelet sweeps only groups that it named itself; this is none of them.
			return "/" + filepath.Join(filepath.Dir(above), "coco-"+parts[len(parts)-1]), why, nil
		}
	}
	return ociPath, "", nil
}

const unlimited = ^uint64(0)

// memory is what a group allows itself; no limit, and no such group or controller, is the largest number.
func memory(dir string) uint64 {
	return min(number(dir, "memory.max"), number(dir, "memory.limit_in_bytes"))
}

// milliCPU is the processor time that a group allows itself; likewise.
func milliCPU(dir string) uint64 {
	quota, period := number(dir, "cpu.cfs_quota_us"), number(dir, "cpu.cfs_period_us")
	if text, err := os.ReadFile(filepath.Join(dir, "cpu.max")); err == nil {
		if f := strings.Fields(string(text)); len(f) == 2 {
			quota, period = parse(f[0]), parse(f[1])
		}
	}
	if quota == unlimited || quota > unlimited/1000 || period == 0 || period == unlimited {
		return unlimited
	}
	return quota * 1000 / period
}

func number(dir, file string) uint64 {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return unlimited
	}
	return parse(strings.TrimSpace(string(text)))
}

// parse reads a limit; "max" and v1's -1 are none.
func parse(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return unlimited
	}
	return n
}
