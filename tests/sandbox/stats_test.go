// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"encoding/json"
	"math"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/internal/procinfo"
	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/tests/harness"
)

// The kubelet gets the guest's measurements of each container: the container that burns CPU, holds
// memory and has processes, and not the other one.
func TestStatsOfContainers(t *testing.T) {
	b := node(t)
	p := b.podConfig("stats")
	pod := b.pod(viaTask, p)
	const held = 12 << 20
	// tail keeps what it has read until somebody reads it; the loop works from when it is told until it is told.
	busy := b.container(pod, p, "busy", "/bin/sh", "-c",
		"(head -c 12582912 /dev/zero | tail -c 12582912 | sleep 1000) & while [ ! -e /go ]; do sleep 0.2; done; while [ ! "+
			"-e /enough ]; do :; done; sleep 1000")
	idle := b.container(pod, p, "idle", "/bin/sleep", "1000")
	ctx := b.ctx(3 * time.Minute)
	stats := func(id string) *cri.ContainerStats {
		t.Helper()
		r, err := b.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStats()
	}
	// The memory is held by a process that fills it on its way; the container says so itself.
	var first *cri.ContainerStats
	for first == nil || first.GetMemory().GetWorkingSetBytes().GetValue() < held {
		first = stats(busy)
		if ctx.Err() != nil {
			t.Fatalf("the working set stays at %d bytes", first.GetMemory().GetWorkingSetBytes().GetValue())
		}
		time.Sleep(200 * time.Millisecond) // each question costs the guest time
	}
	b.sh(busy, "touch /go")
	rest := stats(idle)
	for range 3 { // gives the busy one time to work
		b.sh(idle, "true")
	}
	s, i := stats(busy), stats(idle)
	used := func(a, b *cri.ContainerStats) time.Duration {
		return time.Duration(b.GetCpu().GetUsageCoreNanoSeconds().GetValue() - a.GetCpu().
			GetUsageCoreNanoSeconds().GetValue())
	}
	if busy, idle := used(first, s), used(rest, i); busy < 50*time.Millisecond || busy < idle {
		t.Errorf("the busy container used %v of CPU, the idle one %v", busy, idle)
	}
	m := s.GetMemory()
	if m.GetWorkingSetBytes().GetValue() > m.GetUsageBytes().GetValue() || m.GetRssBytes().GetValue() < held {
		t.Errorf("memory of the busy container = %v", m)
	}
	t.Logf("usage %d, working set %d, anonymous %d", m.GetUsageBytes().GetValue(), m.GetWorkingSetBytes().GetValue(),
		m.GetRssBytes().GetValue())
	if v := i.GetMemory().GetWorkingSetBytes().GetValue(); v == 0 || v > held*2/3 {
		t.Errorf("working set of the idle container = %d", v)
	}
	if s.GetWritableLayer().GetUsedBytes() == nil || s.GetWritableLayer().GetFsId().GetMountpoint() == "" {
		t.Errorf("writable layer = %v", s.GetWritableLayer())
	}
	b.sh(busy, "touch /enough")

	// By the task API the pod's own figures come from its cgroup on the host, with the sandbox API from the shim.
	b.sh(busy, "wget -q -T 1 http://"+b.Registry+"/ || true") // traffic
	ps, err := b.Runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	linux := ps.GetStats().GetLinux()
	if n := linux.GetProcess().GetProcessCount().GetValue(); n < 4 {
		t.Errorf("processes of the pod = %d", n)
	}
	if len(linux.GetContainers()) != 2 || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 ||
		linux.GetMemory().GetWorkingSetBytes().GetValue() < held {
		t.Errorf("stats of the pod = %v", linux)
	}
	if n := linux.GetNetwork().GetDefaultInterface(); n.GetName() != "eth0" || n.GetTxBytes().GetValue() == 0 ||
		n.GetRxBytes().GetValue() == 0 {
		t.Errorf("network of the pod = %v", linux.GetNetwork())
	}
}

func TestStatsOfASandboxOfTheSandboxAPI(t *testing.T) {
	b := node(t)
	p := b.podConfig("sbstats")
	pod := b.pod(viaSandbox, p)
	b.container(pod, p, "one", "/bin/sleep", "1000")
	ps, err := b.Runtime.PodSandboxStats(b.ctx(time.Minute), &cri.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	linux := ps.GetStats().GetLinux()
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 ||
		linux.GetMemory().GetWorkingSetBytes().GetValue() < 32<<20 || len(linux.GetContainers()) != 1 {
		t.Errorf("stats of the pod = %v", linux)
	}
}

// TestMetricsOfAPod reads what `coco metrics` says of a real pod, and holds it against the processes and the clock.
func TestMetricsOfAPod(t *testing.T) {
	b := node(t)
	p := b.podConfig("metrics")
	pod := b.pod(viaTask, p)
	began := time.Now()
	one := b.container(pod, p, "one", "/bin/sleep", "1000")
	took := time.Since(began)
	_, vmm, err := harness.Pids(pod)
	if err != nil {
		t.Fatal(err)
	}
	before, err := procinfo.Read(vmm)
	if err != nil {
		t.Fatal(err)
	}
	b.container(pod, p, "two", "/bin/sleep", "1000")
	after, err := procinfo.Read(vmm)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a further container costs the VMM %v of CPU", after.CPUUser+after.CPUSystem-before.CPUUser-before.CPUSystem)
	samples := b.metrics(pod)

	find := func(name string, labels ...string) float64 {
		t.Helper()
		for _, s := range samples {
			ok := s.Name == name
			for i := 0; i < len(labels); i += 2 {
				ok = ok && s.Labels[labels[i]] == labels[i+1]
			}
			if ok {
				return s.Value
			}
		}
		t.Errorf("no %s%v", name, labels)
		return math.NaN()
	}
	sum := func(name, container string) (total float64) {
		for _, s := range samples {
			if s.Name == name && s.Labels["container"] == container {
				t.Logf("%-10.10s %-20s %7.3f s", container, s.Labels["phase"], s.Value)
				total += s.Value
			}
		}
		return total
	}
	if v, whole := sum("coco_pod_start_phase_seconds", ""),
		find("coco_pod_start_seconds"); math.Abs(v-whole) > 0.02*whole {
		t.Errorf("the phases of the pod's start take %.3f s, the start %.3f s", v, whole)
	}
	for _, s := range samples {
		if s.Name != "coco_container_start_seconds" {
			continue
		}
		id := s.Labels["container"]
		if v := sum("coco_container_start_phase_seconds", id); math.Abs(v-s.Value) > 0.02+0.05*s.Value {
			t.Errorf("the phases of container %s take %.3f s, its start %.3f s", s.Labels["container_name"], v, s.Value)
		}
		if id == one && (s.Value > took.Seconds() || s.Value < took.Seconds()/3) {
			t.Errorf("the start of container one took %v, by its metrics %.3f s", took, s.Value)
		}
	}
	shim, _, err := harness.Pids(pod)
	if err != nil {
		t.Fatal(err)
	}
	for who, pid := range map[string]int{"shim": shim, "vmm": vmm} {
		rss, err := residentKiB(pid)
		// a shim grows by being asked
		if v := find("coco_" + who + "_resident_memory_bytes"); err != nil || math.Abs(v/1024-rss) > rss/4 {
			t.Errorf("%s: resident %.0f KiB by metrics, %.0f by /proc (%v)", who, v/1024, rss, err)
		}
	}
	parts := find("coco_vmm_memory_bytes", "kind", "guest") + find("coco_vmm_memory_bytes", "kind",
		"files") + find("coco_vmm_memory_bytes", "kind", "own")
	generated := find("coco_vmm_memory_bytes", "kind", "generated_code")
	if whole := find("coco_vmm_resident_memory_bytes"); math.Abs(parts+generated-whole) > whole/20 {
		t.Errorf("the VMM's memory is %.0f in parts, %.0f whole", parts+generated, whole)
	}
	t.Logf("guest %.1f MiB, generated code %.1f MiB, files %.1f MiB, own %.1f MiB, shim %.1f MiB",
		find("coco_vmm_memory_bytes", "kind", "guest")/(1<<20), generated/(1<<20),
		find("coco_vmm_memory_bytes", "kind", "files")/(1<<20),
		find("coco_vmm_memory_bytes", "kind", "own")/(1<<20), find("coco_shim_resident_memory_bytes")/(1<<20))
	for _, name := range []string{
		"coco_guest_memory_total_bytes", "coco_guest_cpu_seconds_total",
		"coco_agent_resident_bytes", "coco_container_memory_working_set_bytes", "coco_container_processes",
	} {
		if find(name) == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	if up := find("coco_guest_up"); up != 1 {
		t.Errorf("coco_guest_up = %v", up)
	}
}

// metrics runs `coco metrics` for the pod.
func (b bed) metrics(pod string) []metrics.Sample {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"), "metrics",
		"--json", "--pod", pod)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("coco metrics: %v: %s", err, stderr.String())
	}
	var pods []struct {
		Pod     string
		Metrics []metrics.Sample
	}
	if err := json.Unmarshal(out, &pods); err != nil || len(pods) != 1 || !strings.HasPrefix(pods[0].Pod, pod) {
		b.t.Fatalf("coco metrics says %s, %v", out, err)
	}
	return pods[0].Metrics
}
