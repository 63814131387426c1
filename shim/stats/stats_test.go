// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coco-shim/coco/api/agent"
)

// flatten writes a message as path=value lines; subs names the fields that are messages.
func flatten(t *testing.T, prefix string, data []byte, subs map[string]bool, into map[string]string) {
	t.Helper()
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			t.Fatalf("bad tag at %s", prefix)
		}
		data = data[n:]
		path := fmt.Sprintf("%s.%d", prefix, num)
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(data)
			into[path], data = fmt.Sprint(v), data[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(data)
			data = data[n:]
			if subs[path] {
				flatten(t, path, v, subs, into)
			} else {
				into[path] = string(v)
			}
		default:
			t.Fatalf("%s has wire type %d", path, typ)
		}
	}
}

// Field numbers from cgroup2/stats/metrics.proto of github.com/containerd/cgroups v3.1.3.
func TestStatsAreContainerdsMessage(t *testing.T) {
	st := &agent.StatsContainerResponse{
		CgroupStats: &agent.CgroupStats{
			PidsStats: &agent.PidsStats{Current: 2, Limit: 9},
			CpuStats: &agent.CpuStats{
				CpuUsage:       &agent.CpuUsage{TotalUsage: 7_000, UsageInUsermode: 4_000, UsageInKernelmode: 3_000},
				ThrottlingData: &agent.ThrottlingData{Periods: 5, ThrottledPeriods: 1, ThrottledTime: 2_000},
			},
			MemoryStats: &agent.MemoryStats{
				Cache: 11, Usage: &agent.MemoryData{Usage: 12, Limit: 13, MaxUsage: 14},
				SwapUsage: &agent.MemoryData{Usage: 15, Limit: 16},
				Stats:     map[string]uint64{"anon": 17, "thp_collapse_alloc": 18, "unknown": 19},
			},
			BlkioStats: &agent.BlkioStats{
				IoServiceBytesRecursive: []*agent.BlkioStatsEntry{
					{Major: 8, Minor: 1, Op: "Read", Value: 20},
					{Major: 8, Minor: 1, Op: "Write", Value: 21},
				},
				IoServicedRecursive: []*agent.BlkioStatsEntry{
					{Major: 8, Minor: 1, Op: "read", Value: 22},
					{Major: 8, Minor: 1, Op: "write", Value: 23},
				},
			},
			HugetlbStats: map[string]*agent.HugetlbStats{"2MB": {Usage: 24, MaxUsage: 25, Failcnt: 26}},
		},
		NetworkStats: []*agent.NetworkStats{{Name: "eth0", RxBytes: 27, TxDropped: 28}},
	}
	a := Container(st)
	if a.TypeUrl != "io.containerd.cgroups.v2.Metrics" {
		t.Errorf("type = %s", a.TypeUrl)
	}
	got := map[string]string{}
	subs := map[string]bool{".1": true, ".2": true, ".4": true, ".6": true, ".6.1": true, ".7": true, ".9": true}
	flatten(t, "", a.Value, subs, got)
	want := map[string]string{
		".1.1": "2", ".1.2": "9",
		".2.1": "7", ".2.2": "4", ".2.3": "3", ".2.4": "5", ".2.5": "1", ".2.6": "2",
		".4.1": "17", ".4.2": "11", ".4.31": "18", ".4.32": "12", ".4.33": "13", ".4.34": "15", ".4.35": "16", ".4.36": "14",
		".6.1.1": "8", ".6.1.2": "1", ".6.1.3": "20", ".6.1.4": "21", ".6.1.5": "22", ".6.1.6": "23",
		".7.1": "24", ".7.2": "25", ".7.3": "2MB", ".7.4": "26",
		".9.1": "eth0", ".9.2": "27", ".9.9": "28",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	Container(nil) // of a sandbox: all zero, and no panic
}
