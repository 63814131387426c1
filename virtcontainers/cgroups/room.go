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

// Place is where a VMM can be put.
type Place struct {
	Path  string // like an OCI path
	Short string // why it is not the OCI path itself; empty: it is
	// Quota of processor time in each Period, both in microseconds, that the place has to be given since it is not
	// below the pod's group; 0: none.
	Quota, Period uint64
}

// WithRoom returns where a process that needs that much memory can be put: the OCI path itself, or, when
// a group on that path allows less, or hardly any processor time, a group of its own beside that one, named after the
// path's last part, which keeps the pod's quota of processor time.
//
// A pod's group has the sum of its containers' limits. The VM is larger by the guest's kernel, and what
// a RuntimeClass declares as overhead makes room for that. A pod without a RuntimeClass has no such
// room: the kernel would end its VMM as soon as the guest used what its containers were promised, and a VM of which
// all containers together may take a fiftieth of a processor would boot for minutes. So
// the VMM runs beside the group then, still below the limits of everything above it, and the guest alone
// holds the containers to their limits.
func WithRoom(hs []Hierarchy, ociPath string, need uint64) (Place, error) {
	rel, err := relative(ociPath)
	if err != nil || rel == "" {
		return Place{Path: ociPath}, err
	}
	parts := strings.Split(rel, "/")
	for i := range parts {
		above := filepath.Join(parts[:i+1]...)
		for _, h := range hs {
			dir := filepath.Join(h.Mount, above)
			var why string
			switch {
			case memory(dir) < need:
				why = "less memory than its VM has"
			case milliCPU(dir) < minMilliCPU:
				why = "less processor time than a VM takes to boot"
			default:
				continue
			}
			// A kubelet sweeps only groups that it named itself; this is none of them.
			p := Place{Path: "/" + filepath.Join(filepath.Dir(above), "coco-"+parts[len(parts)-1]), Short: why}
			p.Quota, p.Period = leastQuota(hs, parts[i:], filepath.Dir(above))
			return p, nil
		}
	}
	return Place{Path: ociPath}, nil
}

// leastQuota is the least processor time that the groups on a path allow, from the one that is too small on, but not
// less than a VM takes to boot.
func leastQuota(hs []Hierarchy, parts []string, above string) (quota, period uint64) {
	least := uint64(unlimited)
	for i := range parts {
		for _, h := range hs {
			dir := filepath.Join(h.Mount, above, filepath.Join(parts[:i+1]...))
			if m := milliCPU(dir); m < least {
				_, period = cpuLimit(dir)
				least = m
			}
		}
	}
	if least == unlimited {
		return 0, 0
	}
	least = max(least, minMilliCPU)
	return max(1, least*period/1000), period
}

const unlimited = ^uint64(0)

// memory returns a group's own memory limit, or the largest number without a limit, group or controller.
func memory(dir string) uint64 {
	return min(number(dir, "memory.max"), number(dir, "memory.limit_in_bytes"))
}

// cpuLimit is a group's quota of processor time and its period.
func cpuLimit(dir string) (quota, period uint64) {
	quota, period = number(dir, "cpu.cfs_quota_us"), number(dir, "cpu.cfs_period_us")
	if text, err := os.ReadFile(filepath.Join(dir, "cpu.max")); err == nil {
		if f := strings.Fields(string(text)); len(f) == 2 {
			quota, period = parse(f[0]), parse(f[1])
		}
	}
	return quota, period
}

// milliCPU is the processor time that a group allows itself; likewise.
func milliCPU(dir string) uint64 {
	quota, period := cpuLimit(dir)
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
