// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/api/agent"
)

// Stats reads the group's statistics in the protocol's shape. Files of controllers that the kernel
// does not offer are skipped; a group that does not exist is an error.
func (g Group) Stats() (*agent.CgroupStats, error) {
	if _, err := os.Stat(g.dir); err != nil {
		return nil, fmt.Errorf("cgroup statistics: %w", err)
	}
	return &agent.CgroupStats{
		CpuStats:     g.cpuStats(),
		MemoryStats:  g.memoryStats(),
		PidsStats:    &agent.PidsStats{Current: g.value("pids.current"), Limit: limit(g.value("pids.max"))},
		BlkioStats:   g.ioStats(),
		HugetlbStats: g.hugetlbStats(),
	}, nil
}

// value reads a single-value file; 0 when there is none.
func (g Group) value(name string) uint64 {
	s, err := readSmall(g.file(name))
	if err != nil {
		return 0
	}
	v, err := parseValue(s)
	if err != nil {
		return 0
	}
	return v
}

// keys reads a flat keyed file; empty when there is none.
func (g Group) keys(name string) map[string]uint64 {
	s, err := readSmall(g.file(name))
	if err != nil {
		return nil
	}
	return parseKeys(s)
}

// limit maps "no limit" to 0 as the pids statistics have it.
func limit(v uint64) uint64 {
	if v == ^uint64(0) {
		return 0
	}
	return v
}

func (g Group) cpuStats() *agent.CpuStats {
	k := g.keys("cpu.stat")
	return &agent.CpuStats{
		CpuUsage: &agent.CpuUsage{
			TotalUsage:        usec(k["usage_usec"]),
			UsageInKernelmode: usec(k["system_usec"]),
			UsageInUsermode:   usec(k["user_usec"]),
		},
		ThrottlingData: &agent.ThrottlingData{
			Periods:          k["nr_periods"],
			ThrottledPeriods: k["nr_throttled"],
			ThrottledTime:    usec(k["throttled_usec"]),
		},
	}
}

func (g Group) memoryStats() *agent.MemoryStats {
	stat := g.keys("memory.stat")
	return &agent.MemoryStats{
		Cache: stat["file"],
		Usage: &agent.MemoryData{
			Usage:    g.value("memory.current"),
			MaxUsage: g.value("memory.peak"),
			Limit:    g.value("memory.max"),
			Failcnt:  g.keys("memory.events")["max"],
		},
		SwapUsage: &agent.MemoryData{
			Usage:    g.value("memory.swap.current"),
			MaxUsage: g.value("memory.swap.peak"),
			Limit:    g.value("memory.swap.max"),
			Failcnt:  g.keys("memory.swap.events")["fail"],
		},
		KernelUsage:  &agent.MemoryData{Usage: stat["kernel"]},
		UseHierarchy: true,
		Stats:        stat,
	}
}

func (g Group) ioStats() *agent.BlkioStats {
	f, err := os.Open(g.file("io.stat"))
	if err != nil {
		return &agent.BlkioStats{}
	}
	defer f.Close()
	return parseIO(f)
}

// ioOps maps the keys of io.stat to the operation names of the protocol.
var ioOps = map[string]struct {
	op    string
	bytes bool
}{
	"rbytes": {"Read", true}, "wbytes": {"Write", true}, "dbytes": {"Discard", true},
	"rios": {"Read", false}, "wios": {"Write", false}, "dios": {"Discard", false},
}

// parseIO reads io.stat: "major:minor key=value ..." per device.
func parseIO(r io.Reader) *agent.BlkioStats {
	out := &agent.BlkioStats{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		major, minor, ok := parseDevice(f[0])
		if !ok {
			continue
		}
		for _, w := range f[1:] {
			k, v, _ := strings.Cut(w, "=")
			n, err := strconv.ParseUint(v, 10, 64)
			op, known := ioOps[k]
			if err != nil || !known {
				continue
			}
			e := &agent.BlkioStatsEntry{Major: major, Minor: minor, Op: op.op, Value: n}
			if op.bytes {
				out.IoServiceBytesRecursive = append(out.IoServiceBytesRecursive, e)
			} else {
				out.IoServicedRecursive = append(out.IoServicedRecursive, e)
			}
		}
	}
	return out
}

func parseDevice(s string) (major, minor uint64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, false
	}
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return major, minor, err1 == nil && err2 == nil
}

func (g Group) hugetlbStats() map[string]*agent.HugetlbStats {
	names, _ := filepath.Glob(g.file("hugetlb.*.current")) // a bad pattern cannot be: dir is ours
	out := make(map[string]*agent.HugetlbStats, len(names))
	for _, n := range names {
		base := filepath.Base(n)
		size := strings.TrimSuffix(strings.TrimPrefix(base, "hugetlb."), ".current")
		if strings.HasSuffix(size, ".rsvd") {
			continue
		}
		out[size] = &agent.HugetlbStats{
			Usage:   g.value(base),
			Failcnt: g.keys("hugetlb." + size + ".events")["max"],
		}
	}
	return out
}
