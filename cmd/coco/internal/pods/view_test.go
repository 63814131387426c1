// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/plan/launch"
)

const text = `coco_pod_info{pod="p1",namespace="k8s.io",pod_name="web",pod_namespace="shop",hypervisor="qemu",platform="none"} 1
coco_pod_created_timestamp_seconds{pod="p1"} 1700000000
coco_pod_start_seconds{pod="p1"} 2.5
coco_pod_start_phase_seconds{pod="p1",phase="vmm"} 1
coco_pod_start_phase_seconds{pod="p1",phase="agent"} 1.5
coco_vm_vcpus{pod="p1"} 2
coco_vm_memory_bytes{pod="p1"} 671088640
coco_vmm_memory_bytes{pod="p1",kind="guest"} 104857600
coco_vmm_memory_bytes{pod="p1",kind="own"} 1048576
coco_vmm_memory_bytes{pod="p1",kind="generated_code"} 2097152
coco_vmm_memory_bytes{pod="p1",kind="files"} 4194304
coco_shim_resident_memory_bytes{pod="p1"} 15728640
coco_shim_cpu_seconds_total{pod="p1",mode="user"} 1
coco_vmm_cpu_seconds_total{pod="p1",mode="user"} 4
coco_vmm_cpu_seconds_total{pod="p1",mode="system"} 2
coco_guest_up{pod="p1"} 1
coco_container_start_seconds{pod="p1",container="c1",container_name="nginx"} 0.5
coco_container_start_phase_seconds{pod="p1",container="c1",container_name="nginx",phase="create"} 0.4
coco_container_cpu_seconds_total{pod="p1",container="c1",container_name="nginx"} 3
coco_container_memory_working_set_bytes{pod="p1",container="c1",container_name="nginx"} 1048576
coco_container_processes{pod="p1",container="c1",container_name="nginx"} 7
`

func sampled(t *testing.T, text string) podMetrics {
	t.Helper()
	samples, err := metrics.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return podMetrics{Pod: "p1", Samples: samples}
}

func TestLook(t *testing.T) {
	const mib = 1 << 20
	want := view{
		ID: "p1", Engine: "kubernetes", Namespace: "k8s.io", Name: "shop/web",
		Hypervisor: "qemu", trust: trust{Platform: "none"},
		Created: time.Unix(1_700_000_000, 0).UTC(), StartS: 2.5, GuestUp: true, VCPUs: 2, CPUSeconds: 7,
		Memory: memoryView{VM: 640 * mib, Guest: 100 * mib, VMM: 3 * mib, Shim: 15 * mib},
		Phases: []phaseView{{"vmm", 1}, {"agent", 1.5}},
		Containers: []*containerView{{
			ID: "c1", Name: "nginx", StartS: 0.5, CPUSeconds: 3, Memory: mib, Processes: 7, Phases: []phaseView{{"create", 0.4}},
		}},
	}
	d := cmp.Diff(want, look(sampled(t, text)), cmp.AllowUnexported(view{}, trust{}, origin{}))
	if d != "" {
		t.Errorf("look (-want +got):\n%s", d)
	}
}

func TestInspectPrintsAllOfIt(t *testing.T) {
	p := sampled(t, text)
	p.Launch = &launch.Expected{Platform: "snp", Rehearsal: true, Algorithm: "sha384", Digest: "abcd", HostData: "00ff"}
	var out strings.Builder
	if err := printView(&out, look(p)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"shop/web", "kubernetes (namespace k8s.io of containerd)", "2 CPUs, 640 MiB, qemu, platform none",
		"guest 100 MiB, VMM 3 MiB, shim 15 MiB", "abcd (sha384, snp, rehearsed", "00ff", "vmm", "1.500 s", "nginx c1",
		"1 MiB, 3.0 s of CPU, 7 processes", "answers",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("inspect is\n%s\nwithout %q", out.String(), want)
		}
	}
}

func TestFindTakesNamesAndIDs(t *testing.T) {
	all := []view{
		{ID: "aa11", Name: "shop/web", Containers: []*containerView{{ID: "c1"}}},
		{ID: "aa22", Name: "test/web"},
		{ID: "bb33", Name: "db"},
	}
	for what, want := range map[string]string{
		"shop/web": "aa11", "aa2": "aa22", "c1": "aa11", "db": "bb33", "bb": "bb33", "web": "", "aa": "", "": "", "x": "",
	} {
		got, err := find(all, what)
		if got.ID != want || (err == nil) != (want != "") {
			t.Errorf("find(%q) = %q, %v, want %q", what, got.ID, err, want)
		}
	}
}

func TestUseBetweenTwoAnswers(t *testing.T) {
	at := time.Unix(1, 0)
	first := []view{{ID: "a", Created: at, CPUSeconds: 1}, {ID: "b", Created: at, CPUSeconds: 1}, {ID: "c", Created: at}}
	second := []view{
		{ID: "a", Created: at, CPUSeconds: 1.5},
		{ID: "b", Created: at, CPUSeconds: 4},
		{ID: "c", Created: at.Add(1), CPUSeconds: 9},
		{ID: "d", Created: at},
	}
	got := between(first, second, 2*time.Second)
	if len(got) != 2 || got[0].ID != "b" || got[0].CPUs != 1.5 || got[1].CPUs != 0.25 {
		t.Errorf("between = %+v, want b with 1.5 and a with 0.25", got)
	}
}

func TestDockerTellsNames(t *testing.T) {
	dir, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("ab", 32)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/containers/"+id+"/json" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"Name": "/web"}`))
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
	})
	old := DockerSocket
	DockerSocket = filepath.Join(dir, "s")
	t.Cleanup(func() { DockerSocket = old })
	if got := dockerName(t.Context(), id); got != "web" {
		t.Errorf("dockerName = %q, want web", got)
	}
	if got := dockerName(t.Context(), strings.Repeat("cd", 32)); got != "" {
		t.Errorf("dockerName of an unknown container = %q", got)
	}
}

func TestPsAndTopOfServedPods(t *testing.T) {
	config := servePods(t)
	out, err := run(t, ListCommand(), "--config", config, "--json")
	var list []view
	jerr := json.Unmarshal([]byte(out), &list)
	if err != nil || jerr != nil || len(list) != 2 || list[0].Name != "default/web" {
		t.Errorf("ps --json = %s, %v", out, err)
	}
	out, err = run(t, TopCommand(), "--config", config, "--interval", "100ms")
	if err != nil || strings.Count(out, "default/web") != 2 {
		t.Errorf("top = %s, %v", out, err)
	}
	if _, err := run(t, TopCommand(), "--config", config, "--interval", "1ms"); err == nil {
		t.Error("top takes an interval of a millisecond")
	}
	if out, err := run(t, InspectCommand(), "--config", config, "bb"); err != nil || !strings.Contains(out, "bb22") {
		t.Errorf("inspect = %s, %v", out, err)
	}
	_, err = run(t, InspectCommand(), "--config", config, "web")
	if err == nil || !strings.Contains(err.Error(), "2 pods") {
		t.Errorf("inspect of a name that two have = %v", err)
	}
}
