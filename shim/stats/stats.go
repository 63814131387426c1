// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stats writes the resource use of a container or the VMM as the message that containerd, Docker and CRI read.
package stats

import (
	"maps"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/procinfo"
	"github.com/coco-shim/coco/internal/wire"
	"github.com/coco-shim/coco/internal/words"
)

// messageType is the message that containerd, Docker and CRI expect for cgroup v2. It is always this
// one, as they go by the type and not by the host, and the guest has cgroup v2.
const messageType = "io.containerd.cgroups.v2.Metrics"

// The fields of memory.stat that the message has, by number (cgroup2/stats/metrics.proto of
// github.com/containerd/cgroups). The message is written by hand: its package would add a hundred
// kilobytes of descriptors for a few numbers.
var memoryFields = []struct {
	number protowire.Number
	key    string
}{
	{1, "anon"},
	{2, "file"},
	{3, "kernel_stack"},
	{4, "slab"},
	{5, "sock"},
	{6, "shmem"},
	{7, "file_mapped"},
	{8, "file_dirty"},
	{9, "file_writeback"},
	{10, "anon_thp"},
	{11, "inactive_anon"},
	{12, "active_anon"},
	{13, "inactive_file"},
	{14, "active_file"},
	{15, "unevictable"},
	{16, "slab_reclaimable"},
	{17, "slab_unreclaimable"},
	{18, "pgfault"},
	{19, "pgmajfault"},
	{20, "workingset_refault"},
	{21, "workingset_activate"},
	{22, "workingset_nodereclaim"},
	{23, "pgrefill"},
	{24, "pgscan"},
	{25, "pgsteal"},
	{26, "pgactivate"},
	{27, "pgdeactivate"},
	{28, "pglazyfree"},
	{29, "pglazyfreed"},
	{30, "thp_fault_alloc"},
	{31, "thp_collapse_alloc"},
}

// mostOfAKind bounds lists in a guest's answer: sizes of huge pages, interfaces.
const mostOfAKind = 256

// Container encodes the agent's measurements as containerd's cgroup v2 metrics.
func Container(st *agent.StatsContainerResponse) *anypb.Any {
	cg := st.GetCgroupStats()
	var m, pids, cpu wire.Message
	pids.Number(1, cg.GetPidsStats().GetCurrent())
	pids.Number(2, cg.GetPidsStats().GetLimit())
	m.Sub(1, pids)

	const perMicro = 1000 // the agent counts nanoseconds
	usage, throttling := cg.GetCpuStats().GetCpuUsage(), cg.GetCpuStats().GetThrottlingData()
	cpu.Number(1, usage.GetTotalUsage()/perMicro)
	cpu.Number(2, usage.GetUsageInUsermode()/perMicro)
	cpu.Number(3, usage.GetUsageInKernelmode()/perMicro)
	cpu.Number(4, throttling.GetPeriods())
	cpu.Number(5, throttling.GetThrottledPeriods())
	cpu.Number(6, throttling.GetThrottledTime()/perMicro)
	m.Sub(2, cpu)

	m.Sub(4, memoryStats(cg.GetMemoryStats()))
	m.Sub(6, ioStats(cg.GetBlkioStats()))
	huge := cg.GetHugetlbStats()
	sizes := slices.Sorted(maps.Keys(huge))
	for _, size := range sizes[:min(len(sizes), mostOfAKind)] {
		var h wire.Message
		h.Number(1, huge[size].GetUsage())
		h.Number(2, huge[size].GetMaxUsage())
		h.Text(3, words.Line(size, 64))
		h.Number(4, huge[size].GetFailcnt())
		m.Sub(7, h)
	}
	for i, n := range st.GetNetworkStats() {
		if i == mostOfAKind {
			break
		}
		m.Sub(9, networkStats(n))
	}
	return &anypb.Any{TypeUrl: messageType, Value: m}
}

// Process measures a host process in the same form. It is for the VMM, whose use is the sandbox's use of its node. All
// its memory counts as used and none as cache, since the host cannot reclaim the guest's memory.
func Process(pid int) (*anypb.Any, error) {
	u, err := procinfo.Read(pid)
	if err != nil {
		return nil, err
	}
	var m, pids, cpu, memory wire.Message
	pids.Number(1, 1)
	m.Sub(1, pids)
	cpu.Number(1, uint64((u.CPUUser + u.CPUSystem).Microseconds())) //nolint:gosec // not negative
	cpu.Number(2, uint64(u.CPUUser.Microseconds()))                 //nolint:gosec // likewise
	cpu.Number(3, uint64(u.CPUSystem.Microseconds()))               //nolint:gosec // likewise
	m.Sub(2, cpu)
	memory.Number(1, u.Anon)
	memory.Number(2, u.File)
	memory.Number(6, u.Shmem)
	memory.Number(18, u.MinorFaults+u.MajorFaults)
	memory.Number(19, u.MajorFaults)
	memory.Number(32, u.RSS)
	memory.Number(33, math.MaxUint64) // no limit: the VM's size is it
	m.Sub(4, memory)
	return &anypb.Any{TypeUrl: messageType, Value: m}, nil
}

func memoryStats(s *agent.MemoryStats) wire.Message {
	var m wire.Message
	values := s.GetStats()
	for _, f := range memoryFields {
		v, ok := values[f.key]
		if f.key == "file" && !ok {
			v = s.GetCache()
		}
		m.Number(f.number, v)
	}
	m.Number(32, s.GetUsage().GetUsage())
	m.Number(33, s.GetUsage().GetLimit())
	m.Number(34, s.GetSwapUsage().GetUsage())
	m.Number(35, s.GetSwapUsage().GetLimit())
	m.Number(36, s.GetUsage().GetMaxUsage())
	m.Number(37, s.GetSwapUsage().GetMaxUsage())
	return m
}

// ioStats joins the lists of bytes and of operations per device.
func ioStats(s *agent.BlkioStats) wire.Message {
	type device struct{ major, minor uint64 }
	type counts struct{ rbytes, wbytes, rios, wios uint64 }
	devices := map[device]*counts{}
	var order []device
	at := func(e *agent.BlkioStatsEntry) *counts {
		d := device{e.GetMajor(), e.GetMinor()}
		if devices[d] == nil {
			devices[d] = &counts{}
			order = append(order, d)
		}
		return devices[d]
	}
	for _, e := range s.GetIoServiceBytesRecursive() {
		switch e.GetOp() {
		case "Read", "read":
			at(e).rbytes += e.GetValue()
		case "Write", "write":
			at(e).wbytes += e.GetValue()
		}
	}
	for _, e := range s.GetIoServicedRecursive() {
		switch e.GetOp() {
		case "Read", "read":
			at(e).rios += e.GetValue()
		case "Write", "write":
			at(e).wios += e.GetValue()
		}
	}
	var m wire.Message
	for _, d := range order {
		var e wire.Message
		for i, v := range []uint64{d.major, d.minor, devices[d].rbytes, devices[d].wbytes, devices[d].rios, devices[d].wios} {
			e.Number(protowire.Number(i+1), v)
		}
		m.Sub(1, e)
	}
	return m
}

func networkStats(n *agent.NetworkStats) wire.Message {
	var m wire.Message
	m.Text(1, words.Line(n.GetName(), 64))
	for i, v := range []uint64{
		n.GetRxBytes(), n.GetRxPackets(), n.GetRxErrors(), n.GetRxDropped(),
		n.GetTxBytes(), n.GetTxPackets(), n.GetTxErrors(), n.GetTxDropped(),
	} {
		m.Number(protowire.Number(i+2), v)
	}
	return m
}
