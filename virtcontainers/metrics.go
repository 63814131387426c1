// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/procinfo"
	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/process"
)

// MetricsSocket is the name of the socket in the pod's directory below runtime.state_dir.
const MetricsSocket = "metrics.sock"

// DecisionsPage is the path at this socket of the log of what the guest's policy has decided, if the policy opens it.
const DecisionsPage = "/decisions"

// decisions asks the agent for that log.
func (p *Pod) decisions(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	res, err := p.m.Agent.GetDiagnosticData(ctx, &agent.GetDiagnosticDataRequest{LogType: contract.DecisionLog})
	return res.GetData(), err
}

// guestTimeout bounds how long a reader of metrics waits for the guest.
const guestTimeout = 5 * time.Second

// serveMetrics serves the pod's metrics. It is the last step, since the fields that it reads are final by then.
func (p *Pod) serveMetrics() error {
	dir, err := os.Open(p.m.StateDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Through the descriptor the path is short enough for a socket, however long the directory's is.
	path := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), MetricsSocket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // the descriptor's number may be another's then; the socket goes with its directory
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close() // chmod's error matters
		return err
	}
	if !p.m.Life.Spawn(func(ctx context.Context) {
		if err := metrics.Serve(ctx, l, func(ctx context.Context) string { return p.Metrics(ctx).String() },
			metrics.Page{Path: DecisionsPage, Text: p.decisions}); err != nil {
			p.log.Warn("the pod's metrics are no longer served", "pod", p.opts.ID, "error", err)
		}
	}) {
		_ = l.Close() // the pod is ending
		return errShutdown
	}
	return nil // the listener goes with the pod's life
}

// Metrics measures the pod. Values that cannot be measured now are left out.
func (p *Pod) Metrics(ctx context.Context) *metrics.Set {
	m := metrics.New("pod", p.opts.ID)
	p.mu.Lock()
	running := !p.closing
	phases, total := slices.Clone(p.start.phases), p.start.took
	containers := slices.Collect(maps.Values(p.containers))
	p.mu.Unlock()

	p.describe(m)
	if u, err := procinfo.Read(0); err == nil {
		processUsage(m, "shim", u)
	}
	vmmUsage(m, p.PID(), p.m.Shape)
	for _, ph := range phases {
		if ph.Container == "" {
			m.Gauge("coco_pod_start_phase_seconds", "Time that a step of the pod's start took; the steps follow each other.",
				ph.Duration.Seconds(), "phase", ph.Name)
		}
	}
	if total > 0 {
		m.Gauge("coco_pod_start_seconds", "Time from the request until the pod was ready for containers.", total.Seconds())
	}
	slices.SortFunc(containers, func(a, b *Container) int { return strings.Compare(a.id, b.id) })
	for _, c := range containers {
		containerStart(m, c, phases)
	}
	if !running {
		m.Gauge("coco_guest_up", upHelp, 0)
		return m
	}
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	p.guestMetrics(ctx, m, containers)
	return m
}

const upHelp = "Whether the guest answered; without an answer there are no metrics of guest and containers."

// describe adds the pod's names and size.
func (p *Pod) describe(m *metrics.Set) {
	h, a := p.opts.Config.Hypervisor, p.opts.Spec.Annotations
	m.Gauge("coco_pod_info", "The pod; the value is always 1.", 1, "namespace", p.opts.Namespace,
		"pod_name", a[contract.CRISandboxName], "pod_namespace", a[contract.CRISandboxNamespace],
		"pod_uid", a[contract.CRISandboxUID],
		"hypervisor", h.Type, "platform", h.Platform)
	m.Gauge("coco_pod_created_timestamp_seconds", "When the pod was asked for, in seconds since 1970.",
		float64(p.start.began.UnixMilli())/1000)
	m.Gauge("coco_vm_memory_bytes", "Memory of the virtual machine.", float64(p.m.Shape.MemoryMiB<<20))
	m.Gauge("coco_vm_vcpus", "Virtual processors.", float64(p.m.Shape.VCPUs))
}

// processUsage adds the use of CPU and memory of a host process.
func processUsage(m *metrics.Set, who string, u procinfo.Usage) {
	what := map[string]string{"shim": "the shim", "vmm": "the VMM"}[who]
	m.Gauge("coco_"+who+"_resident_memory_bytes", "Resident memory of "+what+".", float64(u.RSS))
	// memory of a guest with live files is Shmem
	m.Gauge("coco_"+who+"_anonymous_memory_bytes", "Resident memory of "+what+" that is not of files.",
		float64(u.Anon+u.Shmem))
	m.Counter("coco_"+who+"_cpu_seconds_total", "CPU time of "+what+".", u.CPUUser.Seconds(), "mode", "user")
	m.Counter("coco_"+who+"_cpu_seconds_total", "", u.CPUSystem.Seconds(), "mode", "system")
	m.Gauge("coco_"+who+"_threads", "Threads of "+what+".", float64(u.Threads))
}

func vmmUsage(m *metrics.Set, pid int, shape launch.Shape) {
	u, err := procinfo.Read(pid)
	if err != nil || u.RSS == 0 {
		return // it has ended
	}
	processUsage(m, "vmm", u)
	mem, err := procinfo.VMMMemory(pid, shape.MemoryMiB<<20)
	if err != nil {
		return
	}
	const help = "Resident memory of the VMM by what it is for: the guest's memory, code that an emulator generated, " +
		"files (page cache, shared by pods), the VMM's own."
	for _, v := range []struct {
		kind  string
		bytes uint64
	}{{"guest", mem.Guest}, {"generated_code", mem.Generated}, {"files", mem.Files}, {"own", mem.Own}} {
		m.Gauge("coco_vmm_memory_bytes", help, float64(v.bytes), "kind", v.kind)
	}
}

// containerStart says how long a container's start took.
func containerStart(m *metrics.Set, c *Container, phases []Phase) {
	labels := c.labels()
	for _, ph := range phases {
		if ph.Container == c.id {
			m.Gauge("coco_container_start_phase_seconds",
				"Time that a step of the container's start took; the steps follow each other.",
				ph.Duration.Seconds(), append(labels, "phase", ph.Name)...)
		}
	}
	c.mu.Lock()
	took := c.startTime
	c.mu.Unlock()
	m.Gauge("coco_container_start_seconds", "Time that creating and starting the container took.",
		took.Seconds(), labels...)
}

func (c *Container) labels() []string {
	out := []string{"container", c.id, "container_name", ""}
	if c.spec != nil {
		out[3] = c.spec.Annotations[contract.CRIContainerName]
	}
	return slices.Clip(out)
}

// guestMetrics asks the agent.
func (p *Pod) guestMetrics(ctx context.Context, m *metrics.Set, containers []*Container) {
	res, err := p.m.Agent.GetMetrics(ctx, &agent.GetMetricsRequest{})
	up := 1.0
	if err != nil {
		up = 0
	}
	m.Gauge("coco_guest_up", upHelp, up)
	if err != nil {
		return
	}
	m.Adopt(res.GetMetrics(), "coco_agent_", "coco_guest_memory_", "coco_guest_cpu_")
	for _, c := range containers {
		if st, _ := c.init.State(); st != process.Running && st != process.Paused {
			continue
		}
		st, err := p.m.Agent.StatsContainer(ctx, &agent.StatsContainerRequest{ContainerId: c.id})
		if err != nil {
			continue // it may have ended meanwhile
		}
		containerUsage(m, c, st.GetCgroupStats())
	}
}

func containerUsage(m *metrics.Set, c *Container, st *agent.CgroupStats) {
	labels := c.labels()
	mem := st.GetMemoryStats()
	usage, inactive := mem.GetUsage().GetUsage(), mem.GetStats()["inactive_file"]
	m.Counter("coco_container_cpu_seconds_total", "CPU time of the container.",
		float64(st.GetCpuStats().GetCpuUsage().GetTotalUsage())/1e9, labels...)
	m.Gauge("coco_container_memory_usage_bytes", "Memory of the container.", float64(usage), labels...)
	m.Gauge("coco_container_memory_working_set_bytes",
		"The same without file pages that can be dropped, as the kubelet counts.",
		float64(usage-min(inactive, usage)), labels...)
	m.Gauge("coco_container_processes", "Processes and threads of the container.", float64(st.GetPidsStats().GetCurrent()),
		labels...)
}
