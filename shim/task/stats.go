// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coco-shim/coco/api/agent"
)

// statsType is the message that containerd, Docker and CRI expect for cgroup v2. It is always this
// one, as they go by the type and not by the host, and the guest has cgroup v2.
const statsType = "io.containerd.cgroups.v2.Metrics"

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

// message is a protobuf message under construction.
type message []byte

func (m *message) number(n protowire.Number, v uint64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, n, protowire.VarintType), v)
	}
}

func (m *message) text(n protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, n, protowire.BytesType), s)
	}
}

func (m *message) sub(n protowire.Number, s message) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, n, protowire.BytesType), s)
}

// encodeStats writes what the agent measured as containerd's message.
func encodeStats(st *agent.StatsContainerResponse) *anypb.Any {
	cg := st.GetCgroupStats()
	var m, pids, cpu message
	pids.number(1, cg.GetPidsStats().GetCurrent())
	pids.number(2, cg.GetPidsStats().GetLimit())
	m.sub(1, pids)

	const perMicro = 1000 // the agent counts nanoseconds
	usage, throttling := cg.GetCpuStats().GetCpuUsage(), cg.GetCpuStats().GetThrottlingData()
	cpu.number(1, usage.GetTotalUsage()/perMicro)
	cpu.number(2, usage.GetUsageInUsermode()/perMicro)
	cpu.number(3, usage.GetUsageInKernelmode()/perMicro)
	cpu.number(4, throttling.GetPeriods())
	cpu.number(5, throttling.GetThrottledPeriods())
	cpu.number(6, throttling.GetThrottledTime()/perMicro)
	m.sub(2, cpu)

	m.sub(4, memoryStats(cg.GetMemoryStats()))
	m.sub(6, ioStats(cg.GetBlkioStats()))
	huge := cg.GetHugetlbStats()
	for _, size := range slices.Sorted(maps.Keys(huge)) {
		var h message
		h.number(1, huge[size].GetUsage())
		h.number(2, huge[size].GetMaxUsage())
		h.text(3, size)
		h.number(4, huge[size].GetFailcnt())
		m.sub(7, h)
	}
	for _, n := range st.GetNetworkStats() {
		m.sub(9, networkStats(n))
	}
	return &anypb.Any{TypeUrl: statsType, Value: m}
}

func memoryStats(s *agent.MemoryStats) message {
	var m message
	values := s.GetStats()
	for _, f := range memoryFields {
		v, ok := values[f.key]
		if f.key == "file" && !ok {
			v = s.GetCache()
		}
		m.number(f.number, v)
	}
	m.number(32, s.GetUsage().GetUsage())
	m.number(33, s.GetUsage().GetLimit())
	m.number(34, s.GetSwapUsage().GetUsage())
	m.number(35, s.GetSwapUsage().GetLimit())
	m.number(36, s.GetUsage().GetMaxUsage())
	m.number(37, s.GetSwapUsage().GetMaxUsage())
	return m
}

// ioStats joins the lists of bytes and of operations per device.
func ioStats(s *agent.BlkioStats) message {
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
	var m message
	for _, d := range order {
		var e message
		for i, v := range []uint64{d.major, d.minor, devices[d].rbytes, devices[d].wbytes, devices[d].rios, devices[d].wios} {
			e.number(protowire.Number(i+1), v)
		}
		m.sub(1, e)
	}
	return m
}

func networkStats(n *agent.NetworkStats) message {
	var m message
	m.text(1, n.GetName())
	for i, v := range []uint64{
		n.GetRxBytes(), n.GetRxPackets(), n.GetRxErrors(), n.GetRxDropped(),
		n.GetTxBytes(), n.GetTxPackets(), n.GetTxErrors(), n.GetTxDropped(),
	} {
		m.number(protowire.Number(i+2), v)
	}
	return m
}
