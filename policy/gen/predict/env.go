// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package predict

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coco-shim/coco/policy"
)

// command computes argv and environment: kubelet's expansion, then containerd's merge with the image.
func (in Input) command() (args, env []string, err error) {
	vars, err := in.variables()
	if err != nil {
		return nil, nil, err
	}
	list := []string{}
	if in.Container.TTY {
		list = append(list, "TERM=xterm")
	}
	list = append(list, defaultPath, "HOSTNAME="+in.Meta.Hostname)
	list = append(list, in.Image.Env...)
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		list = append(list, name+"="+vars[name])
	}
	command, rest := expandAll(in.Container.Command, vars), expandAll(in.Container.Args, vars)
	if len(command) == 0 {
		if len(rest) == 0 {
			rest = in.Image.Cmd
		}
		if e := in.Image.Entrypoint; len(e) != 1 || e[0] != "" {
			command = e
		}
	}
	args = slices.Concat(command, rest)
	if len(args) == 0 {
		return nil, nil, errors.New("neither the pod nor the image names a command")
	}
	for i, a := range args {
		if err := plain(fmt.Sprintf("argument %d, %q,", i, in.readable(a)), a); err != nil {
			return nil, nil, err
		}
	}
	return args, once(list), nil
}

// readable is a text without the characters of its marks.
func (Input) readable(s string) string { return strings.ReplaceAll(s, markRune, "") }

// once keeps of several settings of one variable the last value, as the container's first process sees it.
func once(list []string) (out []string) {
	at := map[string]int{}
	for _, e := range list {
		name, _, ok := strings.Cut(e, "=")
		if !ok {
			continue // an image's entry without a value removes nothing that is here
		}
		if i, seen := at[name]; seen {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// variables are those that kubelet passes, without those of services.
func (in Input) variables() (map[string]string, error) {
	vars := map[string]string{}
	for i, from := range in.Container.EnvFrom {
		if err := in.envFrom(from, vars); err != nil {
			return nil, fmt.Errorf("envFrom[%d]: %w", i, err)
		}
	}
	for _, e := range in.Container.Env {
		v, ok := expand(e.Value, vars), true
		if e.Value == "" && e.ValueFrom != nil {
			var err error
			if v, ok, err = in.valueFrom(e.ValueFrom); err != nil {
				return nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
		}
		if ok {
			vars[e.Name] = v
		}
	}
	return vars, nil
}

func (in Input) envFrom(from corev1.EnvFromSource, vars map[string]string) error {
	switch {
	case from.ConfigMapRef != nil:
		m, ok := in.Objects.ConfigMap(from.ConfigMapRef.Name)
		if !ok && !isTrue(from.ConfigMapRef.Optional) {
			return missing("ConfigMap", from.ConfigMapRef.Name)
		}
		for k, v := range m.Data {
			vars[from.Prefix+k] = v
		}
	case from.SecretRef != nil:
		s, ok := in.Objects.Secret(from.SecretRef.Name)
		if !ok && !isTrue(from.SecretRef.Optional) {
			return missing("Secret", from.SecretRef.Name)
		}
		for k, v := range SecretData(s) {
			vars[from.Prefix+k] = string(v)
		}
	}
	return nil
}

func missing(kind, name string) error {
	return fmt.Errorf("%s %q is not among the manifests: give its manifest as a further file", kind, name)
}

func isTrue(b *bool) bool { return b != nil && *b }

// SecretData is the data of a Secret as the API server stores it.
func SecretData(s corev1.Secret) map[string][]byte {
	out := maps.Clone(s.Data)
	if out == nil {
		out = map[string][]byte{}
	}
	for k, v := range s.StringData {
		out[k] = []byte(v)
	}
	return out
}

// valueFrom computes a value; false: the variable is left out, since its optional source is not there.
func (in Input) valueFrom(from *corev1.EnvVarSource) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		v, err := in.Field(from.FieldRef.FieldPath)
		return v, true, err
	case from.ResourceFieldRef != nil:
		v, err := in.Resource(from.ResourceFieldRef)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, ok := in.Objects.ConfigMap(ref.Name)
		v, has := m.Data[ref.Key]
		return key("ConfigMap", ref.Name, ref.Key, v, ok, has, isTrue(ref.Optional))
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, ok := in.Objects.Secret(ref.Name)
		v, has := SecretData(s)[ref.Key]
		return key("Secret", ref.Name, ref.Key, string(v), ok, has, isTrue(ref.Optional))
	}
	return "", false, errors.New("this kind of valueFrom is not supported")
}

func key(kind, name, k, v string, object, has, optional bool) (string, bool, error) {
	switch {
	case has:
		return v, true, nil
	case optional && object:
		return "", false, nil
	case !object:
		return "", false, missing(kind, name)
	}
	return "", false, fmt.Errorf("%s %q has no key %q", kind, name, k)
}

var subscript = regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']+)'\]$`)

// Field is the value of a field of the pod by which the downward API names it.
func (in Input) Field(path string) (string, error) {
	switch path {
	case "metadata.name":
		return in.Meta.Name, nil
	case "metadata.namespace":
		return in.Meta.Namespace, nil
	case "metadata.uid":
		return Mark(policy.FieldPodUID), nil
	case "spec.nodeName":
		return Mark(policy.FieldNodeName), nil
	case "spec.serviceAccountName":
		return in.Meta.ServiceAccount, nil
	case "status.podIP":
		return Mark(policy.FieldPodIP), nil
	case "status.podIPs":
		return Mark(policy.FieldPodIPs), nil
	case "status.hostIP":
		return Mark(policy.FieldHostIP), nil
	case "status.hostIPs":
		return Mark(policy.FieldHostIPs), nil
	}
	if m := subscript.FindStringSubmatch(path); m != nil {
		of := in.Meta.Labels
		if m[1] == "annotations" {
			of = in.Meta.Annotations
		}
		return of[m[2]], nil
	}
	return "", fmt.Errorf("field %q is not supported", path)
}

// Resource is the value of a limit or request of the container; one that is not set is the node's.
func (in Input) Resource(ref *corev1.ResourceFieldSelector) (string, error) {
	c := in.Container
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		return "", fmt.Errorf("resource of another container, %s, is not supported", ref.ContainerName)
	}
	which, name, _ := strings.Cut(ref.Resource, ".")
	list := map[string]corev1.ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests}[which]
	q, ok := list[corev1.ResourceName(name)]
	if which == "requests" && !ok {
		q, ok = c.Resources.Limits[corev1.ResourceName(name)]
	}
	if !ok {
		return Mark(Number), nil
	}
	return Divide(name, q, ref.Divisor), nil
}

// Divide counts a quantity in units of a divisor, rounded up.
func Divide(name string, q, divisor resource.Quantity) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	count := func(a, b int64) string { return fmt.Sprint((a + b - 1) / max(b, 1)) }
	if name == "cpu" {
		return count(q.MilliValue(), divisor.MilliValue())
	}
	return count(q.Value(), divisor.Value())
}

func expandAll(list []string, vars map[string]string) (out []string) {
	for _, s := range list {
		out = append(out, expand(s, vars))
	}
	return out
}

// serviceVariable is the form of a variable that kubelet makes for a service.
var serviceVariable = regexp.MustCompile(
	`^[A-Z][A-Z0-9_]*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// expand replaces $(NAME); $$ is one dollar. A name that is not set stays as it is, unless kubelet would set it.
func expand(s string, vars map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch end := strings.IndexByte(s[i:], ')'); {
		case s[i+1] == '$':
			b.WriteByte('$')
			i++
		case s[i+1] == '(' && end > 0:
			name := s[i+2 : i+end]
			v, ok := vars[name]
			switch {
			case ok:
				b.WriteString(v)
			case serviceVariable.MatchString(name):
				b.WriteString(Mark(AnyText))
			default:
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// StaticArgs expands the command of a probe, for which kubelet takes the literal values of the container's variables.
func StaticArgs(args []string, env []corev1.EnvVar) []string {
	vars := map[string]string{}
	for _, e := range env {
		vars[e.Name] = e.Value
	}
	return expandAll(args, vars)
}
