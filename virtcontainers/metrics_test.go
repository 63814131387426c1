// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/metrics"
)

// read asks the pod as `coco metrics` does.
func read(t *testing.T, p *Pod) []metrics.Sample {
	t.Helper()
	sockets, err := filepath.Glob(filepath.Join(p.opts.Config.Runtime.StateDir, "*", MetricsSocket))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets = %v, %v, want one", sockets, err)
	}
	t.Chdir(filepath.Dir(sockets[0])) // the whole path may be too long for a socket
	text, err := metrics.Get(t.Context(), MetricsSocket)
	if err != nil {
		t.Fatal(err)
	}
	samples, err := metrics.Parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return samples
}

func sum(samples []metrics.Sample, name, container string) (total float64, n int) {
	for _, s := range samples {
		if s.Name == name && s.Labels["container"] == container {
			total += s.Value
			n++
		}
	}
	return total, n
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	if _, err := proc(t, p, "c1", "").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := read(t, p)
	for name, want := range map[string]float64{
		"coco_pod_info": 1, "coco_guest_up": 1,
		"coco_guest_memory_total_bytes": 512, "coco_vm_vcpus": 1,
	} {
		if v, n := sum(got, name, ""); n != 1 || v != want {
			t.Errorf("%s = %v (%d samples), want %v", name, v, n, want)
		}
	}
	if v, _ := sum(got, "coco_shim_threads", ""); v == 0 || v >= 999 {
		t.Errorf("coco_shim_threads = %v: not the guest's word", v)
	}
	// The steps' durations add up to the whole.
	for _, c := range []struct{ phase, whole, container string }{
		{"coco_pod_start_phase_seconds", "coco_pod_start_seconds", ""},
		{"coco_container_start_phase_seconds", "coco_container_start_seconds", "c1"},
	} {
		parts, n := sum(got, c.phase, c.container)
		whole, one := sum(got, c.whole, c.container)
		if n < 6 || one != 1 || math.Abs(parts-whole) > 0.02+whole/10 {
			t.Errorf("the %d phases of %s take %v s, the whole %v s", n, c.whole, parts, whole)
		}
	}

	mute := newWorld(t)
	mute.fail = "agent metrics"
	p, _ = start(t, mute, mute.options("sleep"))
	if v, _ := sum(read(t, p), "coco_guest_up", ""); v != 0 {
		t.Errorf("coco_guest_up = %v of a guest that does not answer", v)
	}
}

// GetDiagnosticData has the log of decisions, or none.
func (a *fakeAgent) GetDiagnosticData(
	_ context.Context, r *agent.GetDiagnosticDataRequest,
) (*agent.GetDiagnosticDataResponse, error) {
	if r.GetLogType() != contract.DecisionLog || r.GetContainerId() != "" {
		return nil, errdefs.ErrNotFound
	}
	return &agent.GetDiagnosticDataResponse{Data: "decided\n"}, a.fail("decisions")
}

// TestDecisionsOfTheGuestsPolicy: the socket of the metrics has them, or the guest's sentence why not.
func TestDecisionsOfTheGuestsPolicy(t *testing.T) {
	w := newWorld(t)
	p, _ := start(t, w, w.options("sleep"))
	read(t, p) // works in the directory of the socket now
	if text, err := metrics.GetPage(t.Context(), MetricsSocket, DecisionsPage); err != nil || text != "decided\n" {
		t.Errorf("GetPage = %q, %v", text, err)
	}
	w.fail = "agent decisions"
	if text, err := metrics.GetPage(t.Context(), MetricsSocket, DecisionsPage); err == nil ||
		!strings.Contains(err.Error(), "agent decisions") {
		t.Errorf("GetPage = %q, %v, want the agent's error", text, err)
	}
}
