// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tree writes a group as the kernel would show it.
func tree(t *testing.T, files map[string]string) Group {
	t.Helper()
	root := t.TempDir()
	g := At(root, "/coco/c1")
	if err := os.MkdirAll(g.Dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(g.file(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestAtStaysBelowTheRoot(t *testing.T) {
	for in, want := range map[string]string{"/a/b": "/r/a/b", "../../x": "/r/x", "a/../..": "/r"} {
		if got := At("/r", in).Dir(); got != want {
			t.Errorf("At(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestStats(t *testing.T) {
	g := tree(t, map[string]string{
		"cpu.stat": "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 5\nnr_throttled " +
			"2\nthrottled_usec 7\n",
		"memory.current":      "4096\n",
		"memory.peak":         "8192\n",
		"memory.max":          "max\n",
		"memory.stat":         "anon 1000\nfile 2000\nkernel 300\n",
		"memory.events":       "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
		"memory.swap.current": "10\n",
		"memory.swap.max":     "20\n",
		"pids.current":        "4\n",
		"pids.max":            "max\n",
		"io.stat":             "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=5\nnonsense\n",
		"hugetlb.2MB.current": "2097152\n",
		"hugetlb.2MB.events":  "max 9\n",
	})
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	entry := func(major, minor uint64, op string, v uint64) *agent.BlkioStatsEntry {
		return &agent.BlkioStatsEntry{Major: major, Minor: minor, Op: op, Value: v}
	}
	want := &agent.CgroupStats{
		CpuStats: &agent.CpuStats{
			CpuUsage:       &agent.CpuUsage{TotalUsage: 100000, UsageInUsermode: 60000, UsageInKernelmode: 40000},
			ThrottlingData: &agent.ThrottlingData{Periods: 5, ThrottledPeriods: 2, ThrottledTime: 7000},
		},
		MemoryStats: &agent.MemoryStats{
			Cache:       2000,
			Usage:       &agent.MemoryData{Usage: 4096, MaxUsage: 8192, Limit: ^uint64(0), Failcnt: 3},
			SwapUsage:   &agent.MemoryData{Usage: 10, Limit: 20},
			KernelUsage: &agent.MemoryData{Usage: 300}, UseHierarchy: true,
			Stats: map[string]uint64{"anon": 1000, "file": 2000, "kernel": 300},
		},
		PidsStats: &agent.PidsStats{Current: 4},
		BlkioStats: &agent.BlkioStats{
			IoServiceBytesRecursive: []*agent.BlkioStatsEntry{
				entry(8, 0, "Read", 10), entry(8, 0, "Write", 20),
				entry(8, 0, "Discard", 0), entry(253, 1, "Read", 5),
			},
			IoServicedRecursive: []*agent.BlkioStatsEntry{
				entry(8, 0, "Read", 1), entry(8, 0, "Write", 2),
				entry(8, 0, "Discard", 0),
			},
		},
		HugetlbStats: map[string]*agent.HugetlbStats{"2MB": {Usage: 2097152, Failcnt: 9}},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("Stats (-want +got):\n%s", d)
	}
	if _, err := At(t.TempDir(), "gone").Stats(); err == nil {
		t.Error("statistics of a group that does not exist")
	}
}

func TestPlan(t *testing.T) {
	i := func(v int64) *int64 { return &v }
	u := func(v uint64) *uint64 { return &v }
	w := func(v uint16) *uint16 { return &v }
	dev := specs.LinuxThrottleDevice{Rate: 100}
	dev.Major, dev.Minor = 8, 0
	for _, tc := range []struct {
		name string
		in   *specs.LinuxResources
		now  Current
		want []Setting
		err  func(error) bool
	}{
		{name: "nothing"},
		{
			name: "memory and swap are counted together",
			in:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i(100), Swap: i(150), Reservation: i(50)}},
			want: []Setting{{"memory.swap.max", "50"}, {"memory.max", "100"}, {"memory.low", "50"}},
		},
		{
			name: "swap alone is relative to the limit in force",
			in:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: i(150)}}, now: Current{MemoryMax: 120},
			want: []Setting{{"memory.swap.max", "30"}},
		},
		{
			name: "swap below memory", in: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i(100), Swap: i(50)}},
			err: errdefs.IsInvalidArgument,
		},
		{
			name: "no limit", in: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: i(-1), Swap: i(-1)},
				Pids:   &specs.LinuxPids{Limit: i(-1)},
			},
			want: []Setting{{"memory.swap.max", "max"}, {"memory.max", "max"}, {"pids.max", "max"}},
		},
		{
			name: "processor",
			in: &specs.LinuxResources{CPU: &specs.LinuxCPU{
				Shares: u(1024), Quota: i(50000), Period: u(100000),
				Cpus: "0-1", Mems: "0",
			}},
			want: []Setting{{"cpu.weight", "39"}, {"cpu.max", "50000 100000"}, {"cpuset.cpus", "0-1"}, {"cpuset.mems", "0"}},
		},
		{
			name: "a period keeps the quota", in: &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: u(5000)}},
			now:  Current{Quota: "700"},
			want: []Setting{{"cpu.max", "700 5000"}},
		},
		{
			name: "block devices",
			in: &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
				Weight:                w(500),
				ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{dev},
			}},
			want: []Setting{{"io.weight", "4950"}, {"io.max", "8:0 rbps=100"}},
		},
		{
			name: "huge pages",
			in:   &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 5}}},
			want: []Setting{{"hugetlb.2MB.max", "5"}},
		},
		{
			name: "huge pages elsewhere",
			in:   &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x"}}},
			err:  errdefs.IsInvalidArgument,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Plan(tc.in, tc.now)
			if tc.err != nil {
				if !tc.err(err) {
					t.Errorf("Plan = %v", err)
				}
				return
			}
			if d := cmp.Diff(tc.want, got); err != nil || d != "" {
				t.Errorf("Plan (-want +got), %v:\n%s", err, d)
			}
		})
	}
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := weightOf(shares); got != want {
			t.Errorf("weightOf(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestUpdate(t *testing.T) {
	g := tree(t, map[string]string{"pids.max": "max\n", "memory.max": "max\n"})
	limit := int64(7)
	if err := g.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if s, _ := readSmall(g.file("pids.max")); !strings.HasPrefix(s, "7") {
		t.Errorf("pids.max is %q", s)
	}
	shares := uint64(10)
	if err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}); !errdefs.IsNotImplemented(err) ||
		!strings.Contains(err.Error(), "cpu.weight") {
		t.Errorf("a limit that the kernel does not offer = %v", err)
	}
}

func TestOOMWatcher(t *testing.T) {
	w, err := NewOOMWatcher()
	if err != nil {
		t.Fatal(err)
	}
	g := tree(t, map[string]string{"memory.events": "oom_kill 1\n"})
	if err := w.Add("c1", g); err != nil {
		t.Fatal(err)
	}
	set := func(s string) {
		f, err := os.OpenFile(g.file("memory.events"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	set("oom_kill 2\n")
	if name, err := w.Next(ctx); name != "c1" || err != nil {
		t.Errorf("Next = %q, %v", name, err)
	}
	w.Check("c1") // nothing new
	set("oom_kill 3\n")
	w.Check("c1") // at once, and only once
	if name, err := w.Next(ctx); name != "c1" || err != nil {
		t.Errorf("Next = %q, %v", name, err)
	}
	w.Remove("c1")
	w.Check("c1")
	short, cancel2 := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel2()
	if name, err := w.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next without an event = %q, %v", name, err)
	}
	w.Close()
	if _, err := w.Next(ctx); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next after Close = %v", err)
	}
}

func TestKillAndRemoveOfWhatIsGone(t *testing.T) {
	g := At(t.TempDir(), "gone")
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestRemoveWaitsForTheLastProcess(t *testing.T) {
	g := tree(t, map[string]string{"cgroup.events": "populated 1\nfrozen 0\n"})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := g.Remove(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove = %v, want the deadline", err)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("8:0 rbytes=10 wbytes=20\nusage_usec 5\nmax")
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		parseIO(strings.NewReader(s))
		parseKeys(s)
		_, _ = parseValue(s)
		descriptors([]byte(s))
	})
}

func TestDescriptors(t *testing.T) {
	event := func(wd int32, name int) []byte {
		b := make([]byte, 16+name)
		binary.NativeEndian.PutUint32(b, uint32(wd))
		binary.NativeEndian.PutUint32(b[12:], uint32(name))
		return b
	}
	got := descriptors(append(append(event(1, 0), event(2, 16)...), event(-1, 0)...))
	if d := cmp.Diff([]int32{1, 2, -1}, got); d != "" {
		t.Error(d)
	}
}
