// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gen makes the policy of a pod from its manifest and its images.
//
// For each container it predicts the specification that containerd writes (package predict), lets plan/volume decide
// about the mounts and plan/request convert the rest, as the shim does, and turns the converted specification into the
// policy's container. So the policy and the real request come from the same functions. Facts that only the node knows
// become fields or types of values.
//
// The package is pure: images are resolved and files are read by its caller. The same input gives the same bytes.
package gen

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/manifest"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// Image is an image of a pod.
type Image struct {
	Manifest string   // digest of the platform's manifest, "sha256:…"
	Layers   []string // root hashes, the lowest layer first
	Config   predict.Image
	// Repository is where the image is, with its registry; only for GuestPull.
	Repository string
	// Files has the files that the image has in each volume that it declares.
	Files map[string][]policy.File
}

// Options say what the owner of a pod decides about its policy.
type Options struct {
	Namespace string // of workloads whose manifest names none; "": any
	Allow     Allow
	// Signed has the public keys of volumes whose files their owner signs, by the names of the volumes.
	Signed map[string][]string
	// Unpinned admits any content where a ConfigMap or Secret is not among the manifests.
	Unpinned bool
	// GuestPull has the guest pull all images itself.
	GuestPull bool
	// OldContainerd says that nodes run containerd 1.x, which sets no sysctls of its own.
	OldContainerd bool
	// Seccomp has the digests (FilterDigest) of the filters that RuntimeDefault may be, one for each release of containerd
	// and set of capabilities; empty: those that package filters knows.
	Seccomp []string
	// LocalSeccomp has the digests of profiles of type Localhost, by the name that pods give.
	LocalSeccomp map[string]string
	// Secrets are those of the containers, by their names. A name that no workload has is an error of the caller.
	Secrets map[string][]policy.Secret
	// Sealed has the signers of the sealed secrets that the guest opens.
	Sealed policy.Sealed
	// Workload has the requests that containers may send to the workload API, likewise.
	Workload Workload
}

// Workload opens the workload API.
type Workload struct {
	Port       uint16                     `json:"port,omitempty"` // of the pod's loopback address; 0: none
	Containers map[string]policy.Workload `json:"containers"`
}

// Allow opens capabilities of a policy.
type Allow struct {
	Exec, Logs, Stdin, Stats, Debug, Copy, PortForward bool
}

// Input is all that a policy depends on.
type Input struct {
	Workload manifest.Workload
	Objects  *manifest.Set
	Images   map[string]Image // by reference, as the pod names them
	Options  Options
}

// Policy makes the policy of a workload's pods. Notes tell people what is pinned less than it could be.
func Policy(in Input) (p *policy.Policy, notes []string, err error) {
	g, err := newGenerator(in)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", in.Workload, err)
	}
	p, err = g.policy()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", in.Workload, err)
	}
	return p, g.notes, nil
}

// References lists the images of a workload's pods, each once, in order.
func References(w manifest.Workload) (out []string) {
	add := func(ref string) {
		if ref != "" && !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	for _, c := range slices.Concat(w.Pod.Spec.InitContainers, w.Pod.Spec.Containers) {
		add(c.Image)
	}
	for _, v := range w.Pod.Spec.Volumes {
		if v.Image != nil {
			add(v.Image.Reference)
		}
	}
	return out
}

// generator makes one policy.
type generator struct {
	Input
	pod     *corev1.PodSpec
	meta    predict.Meta
	volumes []volumeOf
	notes   []string
}

func (g *generator) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(g.notes, n) {
		g.notes = append(g.notes, n)
	}
}

func newGenerator(in Input) (*generator, error) {
	g := &generator{Input: in, pod: in.Workload.Pod.Spec.DeepCopy()}
	if len(g.pod.Containers) == 0 {
		return nil, errors.New("the pod has no containers")
	}
	g.meta = g.metadata()
	g.addToken()
	return g, g.planVolumes()
}

// metadata are the facts of the pod, as far as its manifest tells them.
func (g *generator) metadata() predict.Meta {
	w := g.Workload
	m := predict.Meta{
		Name: predict.Mark(policy.FieldPodName), Namespace: w.Namespace, Hostname: predict.Mark(policy.FieldHostname),
		Labels: w.Pod.Labels, Annotations: w.Pod.Annotations, ServiceAccount: g.pod.ServiceAccountName,
		Passed: passed(w.Pod.Annotations),
	}
	if w.Kind == "Pod" && w.Pod.Name != "" {
		m.Name = w.Pod.Name
	}
	if m.Namespace == "" {
		m.Namespace = g.Options.Namespace
	}
	if m.Namespace == "" {
		m.Namespace = predict.Mark(policy.FieldPodNamespace)
	}
	if m.ServiceAccount == "" {
		m.ServiceAccount = "default"
	}
	if h := g.hostname(); h != "" {
		m.Hostname = h
	}
	return m
}

// hostname is the pod's host name; "" if the manifest does not tell it.
func (g *generator) hostname() string {
	const most = 63
	switch {
	case g.pod.HostnameOverride != nil:
		return *g.pod.HostnameOverride
	case g.pod.SetHostnameAsFQDN != nil && *g.pod.SetHostnameAsFQDN && g.pod.Subdomain != "":
		return "" // has the cluster's domain
	case g.pod.Hostname != "":
		return g.pod.Hostname
	case g.Workload.Kind != "Pod" || g.Workload.Pod.Name == "":
		return ""
	case len(g.Workload.Pod.Name) > most:
		return trimEnd(g.Workload.Pod.Name[:most])
	}
	return g.Workload.Pod.Name
}

// trimEnd cuts what kubelet cuts of a host name that it has shortened.
func trimEnd(s string) string {
	for len(s) > 0 && (s[len(s)-1] == '-' || s[len(s)-1] == '.') {
		s = s[:len(s)-1]
	}
	return s
}

func (g *generator) policy() (*policy.Policy, error) {
	p := &policy.Policy{APIVersion: policy.APIVersion, Pod: g.podPolicy()}
	var errs []error
	add := func(c *corev1.Container, kind, restart string) {
		out, err := g.container(c)
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.Name, err))
			return
		}
		out.Kind, out.Restart = kind, restart
		p.Containers = append(p.Containers, out)
	}
	for i := range g.pod.InitContainers {
		c := &g.pod.InitContainers[i]
		if r := c.RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			add(c, policy.Sidecar, policy.Always)
			continue
		}
		add(c, policy.Init, g.initRestart())
	}
	for i := range g.pod.Containers {
		c := &g.pod.Containers[i]
		restart := g.restart()
		if c.RestartPolicy != nil {
			restart = string(*c.RestartPolicy)
		}
		add(c, policy.App, restart)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if p.UsesWorkloadAPI() {
		p.Pod.WorkloadPort = g.Options.Workload.Port
	}
	if p.HasSealed() {
		p.Pod.Sealed = g.Options.Sealed
	}
	for _, v := range g.volumes {
		if v.used && v.policy.Kind != "" {
			p.Volumes = append(p.Volumes, v.policy)
		}
	}
	return p, p.Validate()
}

func (g *generator) restart() string {
	if g.pod.RestartPolicy == "" {
		return policy.Always
	}
	return string(g.pod.RestartPolicy)
}

// initRestart is the rule for init containers: one that was successful does not run again.
func (g *generator) initRestart() string {
	if g.restart() == policy.Never {
		return policy.Never
	}
	return policy.OnFailure
}

func (g *generator) podPolicy() policy.Pod {
	p := policy.Pod{
		Hostname: value(g.meta.Hostname), Sysctls: g.sysctls(), DNS: policy.DNS{FromHost: true}, SharedShm: true,
		Network: policy.Network{Interfaces: []policy.Interface{{Name: "eth0"}}, Routes: true, Neighbours: true},
		Copy:    g.Options.Allow.Copy, Debug: g.Options.Allow.Debug, Stats: g.Options.Allow.Stats,
	}
	if p.Hostname.Field != "" { // a field has no value before the sandbox is made
		p.Hostname = policy.Value{Type: policy.TypeName}
	}
	if g.Options.Allow.PortForward {
		p.PortForward = g.ports()
	}
	return p
}

// ports are the TCP ports that the containers declare.
func (g *generator) ports() (out []uint16) {
	for _, c := range g.pod.Containers {
		for _, p := range c.Ports {
			n := uint16(p.ContainerPort) //nolint:gosec // the API server bounds it
			if p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out
}

// sysctls are the pod's and those that containerd 2 sets for every pod.
func (g *generator) sysctls() map[string]string {
	out := map[string]string{}
	if !g.Options.OldContainerd {
		out["net.ipv4.ip_unprivileged_port_start"], out["net.ipv4.ping_group_range"] = "0", "0 2147483647"
	}
	if sc := g.pod.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			out[s.Name] = s.Value
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// passed are the annotations of a pod that reach its containers where containerd is configured as docs/kubernetes.md
// says.
func passed(all map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range all {
		if isPassed(k) {
			out[k] = v
		}
	}
	return out
}

// objects looks objects up in the workload's namespace.
type objects struct{ *generator }

func (o objects) ConfigMap(name string) (corev1.ConfigMap, bool) {
	return o.Objects.ConfigMap(o.Workload.Namespace, name)
}

func (o objects) Secret(name string) (corev1.Secret, bool) {
	return o.Objects.Secret(o.Workload.Namespace, name)
}

// value turns a text with marks into the texts that are allowed.
func value(s string) policy.Value {
	names, whole := predict.Marks(s)
	switch {
	case len(names) == 0:
		return policy.Value{Is: &s}
	case whole && names[0] == predict.Number:
		return policy.Value{Type: policy.TypeNumber}
	case whole && names[0] != predict.AnyText:
		return policy.Value{Field: names[0]}
	}
	return policy.Value{Type: policy.TypeAny}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
