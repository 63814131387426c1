// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubepod reads Kubernetes manifests and says what a node's runtime will be told of their pods: the
// annotations that reach the shim, among them those with the resources of the sandbox as kubelet computes them.
//
// It is strict where the answer depends on the text: at the levels that lead to a pod's specification, and in the
// specification, its containers and their resources, a key that Kubernetes 1.37 does not have is an error, and so is
// a key that occurs twice. What else is in a pod is not looked at. What a cluster's admission adds (LimitRanges,
// injected sidecars) is unknown here.
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

// Pod is what is known of the pods of one workload.
type Pod struct {
	Kind, Namespace, Name string // of the workload
	RuntimeClass          string // runtimeClassName, may be empty
	HostNetwork           bool
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

// Parse reads one or several documents, YAML or JSON. All problems are reported at once.
func Parse(text []byte) ([]Pod, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("the manifest has more than %d bytes", MaxText)
	}
	r := &reader{}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for n := 1; ; n++ {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.errs = append(r.errs, err)
			break
		}
		if len(doc.Content) == 1 && !isNull(doc.Content[0]) {
			r.object(doc.Content[0], fmt.Sprintf("document %d", n))
		}
	}
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	if len(r.pods) == 0 {
		return nil, errors.New("the manifest has no pod, nor a workload that makes pods")
	}
	return r.pods, nil
}

// reader collects pods and problems.
type reader struct {
	pods  []Pod
	errs  []error
	depth int
}

// bad notes a problem.
func (r *reader) bad(n *yaml.Node, where, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("line %d: %s: %s", n.Line, where, fmt.Sprintf(format, args...)))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// resolve follows an alias.
func resolve(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line}
}

// fields reads a mapping; known, if given, are its keys.
func (r *reader) fields(n *yaml.Node, where string, known []string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	if n == nil {
		return out
	}
	if n = resolve(n); isNull(n) {
		return out
	}
	if n.Kind != yaml.MappingNode {
		r.bad(n, where, "is not a mapping")
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch {
		case k.Kind != yaml.ScalarNode || k.Tag == "!!merge":
			r.bad(k, where, "has a key that is no plain text")
		case out[k.Value] != nil:
			r.bad(k, where, "has the key %q twice", k.Value)
		case known != nil && !slices.Contains(known, k.Value):
			r.bad(k, where, "has an unknown key %q", k.Value)
		default:
			out[k.Value] = resolve(n.Content[i+1])
		}
	}
	return out
}

func (r *reader) text(n *yaml.Node, where string) string {
	switch {
	case n == nil || isNull(n):
		return ""
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		r.bad(n, where, "is not a string")
	}
	return n.Value
}

func (r *reader) truth(n *yaml.Node, where string) bool {
	if n == nil || isNull(n) {
		return false
	}
	var b bool
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(&b) != nil {
		r.bad(n, where, "is not true or false")
	}
	return b
}

func (r *reader) items(n *yaml.Node, where string) []*yaml.Node {
	if n == nil || isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.bad(n, where, "is not a list")
		return nil
	}
	out := make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out[i] = resolve(c)
	}
	return out
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
			r.object(item, fmt.Sprintf("%s: item %d", where, i))
		}
		r.depth--
		return
	}
	w, ok := workloads[kind]
	if !ok {
		if !slices.Contains(others, kind) {
			r.bad(resolve(n), where, "kind %q makes no pods that are known here; known are %s", kind, strings.Join(slices.Sorted(maps.Keys(workloads)), ", "))
		}
		return
	}
	if version != w.version {
		r.bad(resolve(n), where, "%s has apiVersion %q, want %q", kind, version, w.version)
	}
	where = kind
	top := r.fields(n, where, []string{"apiVersion", "kind", "metadata", "spec", "status"})
	meta := r.fields(top["metadata"], where+": metadata", metadataKeys)
	p := Pod{Kind: kind, Namespace: r.text(meta["namespace"], where+": namespace"), Name: r.text(meta["name"], where+": name")}
	if p.Name == "" {
		p.Name = r.text(meta["generateName"], where+": generateName")
	}
	where = p.String()
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
		p.Annotations[k] = r.text(v, where+": annotation "+k)
	}
	if f["spec"] == nil || isNull(f["spec"]) {
		r.bad(resolve(n), where, "has no spec")
		return
	}
	before := len(r.errs)
	s := r.spec(f["spec"], where)
	p.RuntimeClass, p.HostNetwork = s.runtimeClass, s.hostNetwork
	if len(r.errs) == before {
		maps.Copy(p.Annotations, s.sandbox().annotations())
	}
	r.pods = append(r.pods, p)
}

// podSpec is what of a pod's specification is looked at.
type podSpec struct {
	runtimeClass      string
	hostNetwork       bool
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
	s.hostNetwork = r.truth(f["hostNetwork"], where+": hostNetwork")
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
	return resources{requests: r.amounts(f["requests"], where+": requests"), limits: r.amounts(f["limits"], where+": limits")}
}

func (r *reader) amounts(n *yaml.Node, where string) list {
	f := r.fields(n, where, nil)
	if len(f) == 0 {
		return nil
	}
	out := list{}
	for k, v := range f {
		if v.Kind != yaml.ScalarNode || !slices.Contains([]string{"!!str", "!!int", "!!float"}, v.Tag) {
			r.bad(v, where, "%s is not a quantity", k)
			continue
		}
		q, err := parseQuantity(v.Value)
		if err != nil {
			r.bad(v, where, "%s: %v", k, err)
			continue
		}
		out[k] = q
	}
	return out
}
