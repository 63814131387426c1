// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubepod reads Kubernetes manifests and computes what a node's runtime gets to know of their pods: the
// annotations that reach the shim, among them those with the resources of the sandbox as kubelet computes them.
//
// It is strict where the result depends on the text: at the levels that lead to a pod's specification, and in the
// specification, its containers and their resources, a key that Kubernetes 1.37 does not have is an error, and so is
// a key that occurs twice. Values and merge keys are read as kubectl reads them (YAML 1.1). Other parts of a pod are
// ignored. LimitRanges of the same text count; other changes by a cluster's admission (other LimitRanges, injected
// sidecars) are unknown here.
package kubepod

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxText bounds a manifest.
const MaxText = 16 << 20

// Manifest is what a text says.
type Manifest struct {
	Pods  []Pod
	Notes []string // what was passed over, for people
}

// Pod is what is known of the pods of one workload.
type Pod struct {
	Kind, Namespace, Name string   // of the workload
	RuntimeClass          string   // runtimeClassName, may be empty
	HostNamespaces        []string // the fields by which it asks for the host's: "hostNetwork", "hostPID", "hostIPC"
	// Annotations are those that reach the shim: the pod's and those of the sandbox's resources.
	Annotations map[string]string
}

// String names the workload.
func (p Pod) String() string {
	name := p.Name
	if p.Namespace != "" {
		name = p.Namespace + "/" + name
	}
	return p.Kind + " " + name
}

// Parse reads one or several documents, YAML or JSON. All problems are reported at once, up to maxProblems.
func Parse(text []byte) (Manifest, error) {
	if len(text) > MaxText {
		return Manifest{}, fmt.Errorf("the manifest has more than %d bytes", MaxText)
	}
	r := newReader(len(text))
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for n := 1; !r.full(); n++ {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.problem(short(err))
			break
		}
		if len(doc.Content) == 1 && !isNull(doc.Content[0]) {
			r.object(doc.Content[0], fmt.Sprintf("document %d", n))
		}
	}
	r.finish()
	if len(r.errs) > 0 {
		return Manifest{}, errors.Join(r.errs...)
	}
	m := Manifest{Notes: r.notes}
	for _, p := range r.pods {
		m.Pods = append(m.Pods, p.Pod)
	}
	if len(m.Pods) == 0 {
		return Manifest{}, fmt.Errorf("the manifest has no pod, nor a workload that makes pods%s", r.passedOver())
	}
	return m, nil
}

// object reads one object of a manifest.
func (r *reader) object(n *yaml.Node, where string) {
	f := r.fields(n, where, nil)
	kind, version := r.text(f["kind"], where+": kind"), r.text(f["apiVersion"], where+": apiVersion")
	if kind == "List" || strings.HasSuffix(kind, "List") && f["items"] != nil {
		if r.depth++; r.depth > 8 {
			r.bad(n, where, "is a list too deep in lists")
			return
		}
		for i, item := range r.items(f["items"], where+": items") {
			if r.full() {
				return
			}
			r.object(item, fmt.Sprintf("%s: item %d", where, i))
		}
		r.depth--
		return
	}
	if kind == "LimitRange" && version == "v1" {
		r.limitRange(f, n)
		return
	}
	w, ok := workloads[kind]
	if !ok || group(version) != group(w.version) {
		r.other(n, where, kind, version)
		return
	}
	if version != w.version {
		r.bad(resolve(n), where, "%s has apiVersion %q, want %q", kind, version, w.version)
	}
	where = kind
	top := r.fields(n, where, []string{"apiVersion", "kind", "metadata", "spec", "status"})
	meta := r.fields(top["metadata"], where+": metadata", metadataKeys)
	p := Pod{
		Kind: kind, Namespace: r.text(meta["namespace"], where+": namespace"),
		Name: r.text(meta["name"], where+": name"),
	}
	if p.Name == "" {
		p.Name = r.text(meta["generateName"], where+": generateName")
	}
	where = clip(p.String())
	template := n
	for _, step := range w.path {
		at := r.fields(template, where, nil)
		if template = at[step.key]; template == nil || isNull(template) {
			r.bad(resolve(n), where, "has no %s", step.key)
			return
		}
		r.fields(template, where+": "+step.key, step.known)
	}
	r.pod(template, where, p)
}

// pod reads an object with metadata and a pod's specification.
func (r *reader) pod(n *yaml.Node, where string, p Pod) {
	f := r.fields(n, where, nil)
	meta := r.fields(f["metadata"], where+": metadata", metadataKeys)
	p.Annotations = map[string]string{}
	for k, v := range r.fields(meta["annotations"], where+": annotations", nil) {
		p.Annotations[k] = r.text(v, where+": annotation "+clip(k))
	}
	if f["spec"] == nil || isNull(f["spec"]) {
		r.bad(resolve(n), where, "has no spec")
		return
	}
	s := r.spec(f["spec"], where)
	p.RuntimeClass, p.HostNamespaces = s.runtimeClass, s.hostNamespaces
	r.pods = append(r.pods, &found{p, s})
}

// found is a pod with what its resources are computed from when all of the text is read.
type found struct {
	Pod
	spec podSpec
}

// finish computes what depends on the whole text.
func (r *reader) finish() {
	if len(r.errs) > 0 {
		return
	}
	for _, p := range r.pods {
		limited := r.limited(p)
		maps.Copy(p.Annotations, limited.sandbox(p.spec).annotations())
	}
}

// other passes over an object that makes no pods that are known here.
func (r *reader) other(n *yaml.Node, where, kind, version string) {
	switch {
	case kind == "":
		r.bad(resolve(n), where, "has no kind")
	case !slices.Contains(others, kind) || strings.Contains(group(version), ".") &&
		!strings.HasSuffix(group(version), ".k8s.io"):
		r.note("line %d: kind %.60q of apiVersion %.60q is unknown here and passed over: if it makes pods, they are not "+
			"measured", resolve(n).Line, kind, version)
	}
}

// group is an API version without the version.
func group(version string) string {
	g, _, ok := strings.Cut(version, "/")
	if !ok {
		return ""
	}
	return g
}

// podSpec is what of a pod's specification is looked at.
type podSpec struct {
	runtimeClass      string
	hostNamespaces    []string
	containers, inits []container
	resources         resources
}

type container struct {
	resources resources
	sidecar   bool
}

func (r *reader) spec(n *yaml.Node, where string) (s podSpec) {
	f := r.fields(n, where+": spec", podKeys)
	s.runtimeClass = r.text(f["runtimeClassName"], where+": runtimeClassName")
	for _, field := range []string{"hostNetwork", "hostPID", "hostIPC"} {
		if r.truth(f[field], where+": "+field) {
			s.hostNamespaces = append(s.hostNamespaces, field)
		}
	}
	s.resources = r.resources(f["resources"], where+": resources")
	s.containers = r.containers(f["containers"], where+": containers", false)
	s.inits = r.containers(f["initContainers"], where+": initContainers", true)
	if len(s.containers) == 0 {
		r.bad(resolve(n), where, "has no containers")
	}
	return s
}

func (r *reader) containers(n *yaml.Node, where string, inits bool) (out []container) {
	for i, c := range r.items(n, where) {
		at := fmt.Sprintf("%s[%d]", where, i)
		f := r.fields(c, at, containerKeys)
		policy := r.text(f["restartPolicy"], at+": restartPolicy")
		out = append(out, container{
			resources: r.resources(f["resources"], at+": resources"),
			sidecar:   inits && policy == "Always",
		})
	}
	return out
}

func (r *reader) resources(n *yaml.Node, where string) resources {
	f := r.fields(n, where, []string{"requests", "limits", "claims"})
	if c := f["claims"]; c != nil && len(r.items(c, where+": claims")) > 0 {
		r.bad(c, where, "has claims: what they allocate is known on the node only")
	}
	return resources{
		requests: r.amounts(f["requests"], where+": requests"),
		limits:   r.amounts(f["limits"], where+": limits"),
	}
}

func (r *reader) amounts(n *yaml.Node, where string) list {
	f := r.fields(n, where, nil)
	if len(f) == 0 {
		return nil
	}
	out := list{}
	for k, v := range f {
		text, ok := quantityText(v)
		if !ok {
			r.bad(v, where, "%s is not a quantity", clip(k))
			continue
		}
		q, err := parseQuantity(text)
		if err != nil {
			r.bad(v, where, "%s: %v", clip(k), err)
			continue
		}
		out[k] = q
	}
	return out
}
