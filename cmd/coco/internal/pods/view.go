// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coco-shim/coco/internal/words"
	"github.com/coco-shim/coco/metrics"
)

// view is a pod as people see it: by the name that its engine gave it.
type view struct {
	ID         string           `json:"id"`
	Engine     string           `json:"engine"`    // kubernetes, docker or ctr, by the namespace in containerd
	Namespace  string           `json:"namespace"` // in containerd
	Name       string           `json:"name"`
	Hypervisor string           `json:"hypervisor"`
	Created    time.Time        `json:"created"`
	StartS     float64          `json:"start_seconds"`
	GuestUp    bool             `json:"guest_up"`
	VCPUs      int              `json:"vcpus"`
	Memory     memoryView       `json:"memory"`
	CPUSeconds float64          `json:"cpu_seconds"` // of VMM and shim
	Phases     []phaseView      `json:"start_phases"`
	Containers []*containerView `json:"containers"`
	trust
	origin
}

// origin is where a pod was found.
type origin struct {
	socket string // of its metrics
	uid    string // Kubernetes' own id of the pod
}

// memoryView is in bytes; all but VM are what is really used on the host.
type memoryView struct {
	VM    float64 `json:"vm"`
	Guest float64 `json:"guest"`
	VMM   float64 `json:"vmm"` // without guest and files
	Shim  float64 `json:"shim"`
}

type phaseView struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

type containerView struct {
	ID         string      `json:"id"`
	Name       string      `json:"name,omitempty"`
	StartS     float64     `json:"start_seconds"`
	CPUSeconds float64     `json:"cpu_seconds"`
	Memory     float64     `json:"memory"` // working set, bytes
	Processes  int         `json:"processes"`
	Phases     []phaseView `json:"start_phases"`
}

// engineOf names the engine that uses a namespace of containerd. "ctr" stands for every client without one of its own.
func engineOf(namespace string) string {
	switch namespace {
	case "k8s.io":
		return "kubernetes"
	case "moby":
		return "docker"
	}
	return "ctr"
}

// look makes the view of what a pod said.
func look(p podMetrics) view {
	v := view{ID: p.Pod, Phases: []phaseView{}, Containers: []*containerView{}, origin: origin{socket: p.socket}}
	v.LaunchFacts = p.Launch
	for _, s := range p.Samples {
		switch s.Name {
		case "coco_pod_info":
			v.Namespace, v.Hypervisor, v.Platform = s.Labels["namespace"], s.Labels["hypervisor"], s.Labels["platform"]
			v.uid = s.Labels["pod_uid"]
			if v.Name = s.Labels["pod_name"]; v.Name != "" {
				v.Name = s.Labels["pod_namespace"] + "/" + v.Name
			}
		case "coco_pod_created_timestamp_seconds":
			v.Created = time.UnixMilli(int64(s.Value * 1000)).UTC()
		case "coco_pod_start_seconds":
			v.StartS = s.Value
		case "coco_pod_start_phase_seconds":
			v.Phases = append(v.Phases, phaseView{s.Labels["phase"], s.Value})
		case "coco_guest_up":
			v.GuestUp = s.Value == 1
		case "coco_vm_vcpus":
			v.VCPUs = int(s.Value)
		case "coco_vmm_cpu_seconds_total", "coco_shim_cpu_seconds_total":
			v.CPUSeconds += s.Value
		default:
			v.Memory.take(s)
			v.takeContainer(s)
		}
	}
	v.Engine = engineOf(v.Namespace)
	return v
}

func (m *memoryView) take(s metrics.Sample) {
	switch s.Name {
	case "coco_vm_memory_bytes":
		m.VM = s.Value
	case "coco_shim_resident_memory_bytes":
		m.Shim = s.Value
	case "coco_vmm_memory_bytes":
		switch s.Labels["kind"] {
		case "guest":
			m.Guest = s.Value
		case "generated_code", "own":
			m.VMM += s.Value
		}
	}
}

func (v *view) takeContainer(s metrics.Sample) {
	id := s.Labels["container"]
	if id == "" || !strings.HasPrefix(s.Name, "coco_container_") {
		return
	}
	at := slices.IndexFunc(v.Containers, func(c *containerView) bool { return c.ID == id })
	if at < 0 {
		at = len(v.Containers)
		v.Containers = append(v.Containers, &containerView{ID: id, Name: s.Labels["container_name"], Phases: []phaseView{}})
	}
	c := v.Containers[at]
	switch s.Name {
	case "coco_container_start_seconds":
		c.StartS = s.Value
	case "coco_container_start_phase_seconds":
		c.Phases = append(c.Phases, phaseView{s.Labels["phase"], s.Value})
	case "coco_container_cpu_seconds_total":
		c.CPUSeconds = s.Value
	case "coco_container_memory_working_set_bytes":
		c.Memory = s.Value
	case "coco_container_processes":
		c.Processes = int(s.Value)
	}
}

// DockerSocket is where Docker answers. Tests have their own.
var DockerSocket = "/var/run/docker.sock"

var dockerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// views gathers the pods and asks Docker for the names of its own. The error is of pods that did not answer.
func views(ctx context.Context, dir string) ([]view, error) {
	pods, err := gather(ctx, dir)
	return named(ctx, pods), err
}

// named makes views of the pods' answers.
func named(ctx context.Context, pods []podMetrics) []view {
	out := []view{}
	for _, p := range pods {
		v := look(p)
		if v.Engine == "docker" && dockerID.MatchString(v.ID) {
			v.Name = dockerName(ctx, v.ID)
		}
		if v.Name == "" {
			v.Name = v.ID
		}
		v.Name = words.Line(v.Name, 128)
		out = append(out, v)
	}
	return out
}

// dockerName returns the name of a container, or "" if Docker does not tell it in two seconds.
func dockerName(ctx context.Context, id string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := DockerGet(ctx, "/containers/"+id+"/json")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var c struct{ Name string }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&c) != nil {
		return ""
	}
	return strings.TrimPrefix(c.Name, "/")
}

// DockerGet asks Docker's API. The connection ends with the answer's body.
func DockerGet(ctx context.Context, path string) (*http.Response, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", DockerSocket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	return transport.RoundTrip(req)
}

// find returns the one pod that a user means: by name, or by the beginning of its id or of one of its containers'.
func find(all []view, what string) (view, error) {
	var fits []view
	for _, v := range all {
		byID := strings.HasPrefix(v.ID, what) ||
			slices.ContainsFunc(v.Containers, func(c *containerView) bool { return strings.HasPrefix(c.ID, what) })
		if v.Name == what || v.ID == what {
			return v, nil
		}
		if what != "" && (byID || strings.HasSuffix(v.Name, "/"+what)) {
			fits = append(fits, v)
		}
	}
	if len(fits) == 1 {
		return fits[0], nil
	}
	return view{}, fmt.Errorf("%d pods are called %q, or have an id that begins so; coco ps lists all", len(fits), what)
}
