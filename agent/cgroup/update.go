// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Setting is one value for one file of a group.
type Setting struct{ File, Value string }

// Update applies limits to a running group. Device rules are left as they were, as runc leaves
// them on update. The first write that fails ends it; the error names the file.
func (g Group) Update(res *specs.LinuxResources) error {
	now := Current{MemoryMax: g.value("memory.max")}
	if s, err := readSmall(g.file("cpu.max")); err == nil {
		now.Quota, _, _ = strings.Cut(strings.TrimSpace(s), " ")
	}
	list, err := Plan(res, now)
	if err != nil {
		return err
	}
	for _, s := range list {
		if _, err := os.Stat(g.file(s.File)); os.IsNotExist(err) {
			return fmt.Errorf("limit %s: the guest kernel does not offer it: %w", s.File, errdefs.ErrNotImplemented)
		}
		if err := g.write(s.File, s.Value); err != nil {
			return err
		}
	}
	return nil
}

// Current has the limits in force that a new limit may be relative to.
type Current struct {
	MemoryMax uint64 // a swap limit is counted from it
	Quota     string // first word of cpu.max; a new period keeps it
}

// Plan translates OCI limits into files of the unified hierarchy; it is pure.
func Plan(res *specs.LinuxResources, now Current) ([]Setting, error) {
	if res == nil {
		return nil, nil
	}
	list, err := planMemory(res.Memory, now.MemoryMax)
	if err != nil {
		return nil, err
	}
	list = append(list, planCPU(res.CPU, now.Quota)...)
	if p := res.Pids; p != nil && p.Limit != nil && *p.Limit != 0 {
		list = append(list, Setting{"pids.max", orMax(*p.Limit)})
	}
	list = append(list, planIO(res.BlockIO)...)
	for _, h := range res.HugepageLimits {
		if h.Pagesize == "" || strings.ContainsAny(h.Pagesize, "/.") {
			return nil, fmt.Errorf("huge page size %q: %w", h.Pagesize, errdefs.ErrInvalidArgument)
		}
		list = append(list, Setting{"hugetlb." + h.Pagesize + ".max", strconv.FormatUint(h.Limit, 10)})
	}
	for _, file := range slices.Sorted(maps.Keys(res.Unified)) {
		if !strings.Contains(file, ".") || strings.Contains(file, "/") || strings.HasPrefix(file, "cgroup.") {
			return nil, fmt.Errorf("%q is no limit of a control group: %w", file, errdefs.ErrInvalidArgument)
		}
		list = append(list, Setting{file, res.Unified[file]})
	}
	return list, nil
}

// planMemory: on the unified hierarchy swap is limited by itself; the specification's swap value is
// memory and swap together.
func planMemory(m *specs.LinuxMemory, memMax uint64) ([]Setting, error) {
	if m == nil {
		return nil, nil
	}
	var list []Setting
	if m.Swap != nil && *m.Swap != 0 {
		swap := *m.Swap
		if swap > 0 {
			base := int64(min(memMax, 1<<62))
			if m.Limit != nil && *m.Limit != 0 {
				base = *m.Limit
			}
			if base < 0 || swap < base {
				return nil, fmt.Errorf("memory and swap limit %d is below the memory limit: %w", swap, errdefs.ErrInvalidArgument)
			}
			swap -= base
		}
		list = append(list, Setting{"memory.swap.max", orMax(swap)})
	}
	if m.Limit != nil && *m.Limit != 0 {
		list = append(list, Setting{"memory.max", orMax(*m.Limit)})
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		list = append(list, Setting{"memory.low", orMax(*m.Reservation)})
	}
	return list, nil
}

func planCPU(c *specs.LinuxCPU, quota string) []Setting {
	if c == nil {
		return nil
	}
	var list []Setting
	if c.Shares != nil && *c.Shares != 0 {
		list = append(list, Setting{"cpu.weight", strconv.FormatUint(weightOf(*c.Shares), 10)})
	}
	if c.Quota != nil || c.Period != nil {
		if c.Quota != nil {
			quota = orMax(*c.Quota)
		}
		if quota == "" {
			quota = "max"
		}
		value := quota // the file keeps the period when it is left out
		if c.Period != nil && *c.Period != 0 {
			value += " " + strconv.FormatUint(*c.Period, 10)
		}
		list = append(list, Setting{"cpu.max", value})
	}
	if c.Cpus != "" {
		list = append(list, Setting{"cpuset.cpus", c.Cpus})
	}
	if c.Mems != "" {
		list = append(list, Setting{"cpuset.mems", c.Mems})
	}
	return list
}

// weightOf maps shares (2 to 262144) to a weight (1 to 10000), linearly as OCI runtimes do.
func weightOf(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + ((shares-2)*9999)/262142
}

func planIO(b *specs.LinuxBlockIO) []Setting {
	if b == nil {
		return nil
	}
	var list []Setting
	if b.Weight != nil && *b.Weight != 0 {
		// 10..1000 of the old interface to 1..10000 of io.weight.
		w := 1 + (uint64(max(*b.Weight, 10))-10)*9999/990
		list = append(list, Setting{"io.weight", strconv.FormatUint(w, 10)})
	}
	for _, t := range []struct {
		key string
		dev []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice},
		{"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice},
		{"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.dev {
			rate := "max"
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			list = append(list, Setting{"io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.key, rate)})
		}
	}
	return list
}

// orMax writes a limit; below zero is none.
func orMax(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}
