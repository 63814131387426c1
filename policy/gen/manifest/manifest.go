// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package manifest reads Kubernetes objects for the policy generator: workloads with their pods' templates, and the
// objects that a pod's environment and files come from.
//
// It is strict: a member that Kubernetes does not know, or that occurs twice, is an error, since a misspelt one would
// be missing in the policy. Objects that a pod does not depend on are passed over with a note if they are unknown here.
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// MaxText bounds a text.
const MaxText = 16 << 20

// Workload is an object that makes pods. Pods of one workload are alike but for their names.
type Workload struct {
	Kind, Namespace, Name string
	Pod                   corev1.PodTemplateSpec
	// Claims are the names of the volumes that a StatefulSet claims for each pod.
	Claims []string
}

// String names the workload.
func (w Workload) String() string {
	if w.Namespace == "" {
		return w.Kind + " " + w.Name
	}
	return w.Kind + " " + w.Namespace + "/" + w.Name
}

// Key names an object of a namespace.
type Key struct{ Namespace, Name string }

// Set is the objects of one or several texts.
type Set struct {
	Workloads  []Workload
	ConfigMaps map[Key]corev1.ConfigMap
	Secrets    map[Key]corev1.Secret
	Accounts   map[Key]corev1.ServiceAccount
}

// ConfigMap returns a ConfigMap of a workload's namespace.
func (s *Set) ConfigMap(namespace, name string) (corev1.ConfigMap, bool) {
	return lookup(s.ConfigMaps, namespace, name)
}

// Secret returns a Secret of a workload's namespace.
func (s *Set) Secret(namespace, name string) (corev1.Secret, bool) {
	return lookup(s.Secrets, namespace, name)
}

// Account returns a service account of a workload's namespace.
func (s *Set) Account(namespace, name string) (corev1.ServiceAccount, bool) {
	return lookup(s.Accounts, namespace, name)
}

// lookup takes the object of the namespace. Where the manifests name no namespace, kubectl puts all into one.
func lookup[T any](m map[Key]T, namespace, name string) (T, bool) {
	v, ok := m[Key{namespace, name}]
	return v, ok
}

// Parse adds the objects of a text, YAML or JSON, of one or several documents.
func (s *Set) Parse(text []byte) error {
	if len(text) > MaxText {
		return fmt.Errorf("has more than %d bytes", MaxText)
	}
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var errs []error
	for n := 1; ; n++ {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = s.object(doc)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
		}
	}
	return errors.Join(errs...)
}

// object adds one object, or those of a list.
func (s *Set) object(doc []byte) error {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return err
	}
	if head.Kind == "List" || strings.HasSuffix(head.Kind, "List") {
		var list struct {
			metav1.TypeMeta `json:",inline"`
			Metadata        metav1.ListMeta `json:"metadata"`
			Items           []any           `json:"items"`
		}
		if err := yaml.UnmarshalStrict(doc, &list); err != nil {
			return fmt.Errorf("%s: %w", head.Kind, err)
		}
		var errs []error
		for i, item := range list.Items {
			b, err := yaml.Marshal(item)
			if err == nil {
				err = s.object(b)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("item %d: %w", i, err))
			}
		}
		return errors.Join(errs...)
	}
	if head.Kind == "" {
		if len(bytes.TrimSpace(comments(doc))) == 0 {
			return nil // an empty document
		}
		return errors.New("the object has no kind")
	}
	if err := s.add(head, doc); err != nil {
		return fmt.Errorf("%s: %w", head.Kind, err)
	}
	return nil
}

// comments removes the lines of a document that are comments or separators.
func comments(doc []byte) []byte {
	var out []byte
	for line := range bytes.Lines(doc) {
		if t := bytes.TrimSpace(line); !bytes.HasPrefix(t, []byte("#")) && !bytes.Equal(t, []byte("---")) {
			out = append(out, line...)
		}
	}
	return out
}

func (s *Set) add(head metav1.TypeMeta, doc []byte) error {
	switch head.APIVersion + "/" + head.Kind {
	case "v1/Pod":
		return decode(doc, func(o corev1.Pod) {
			s.workload(head.Kind, o.ObjectMeta, corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec})
		})
	case "v1/ReplicationController":
		return decode(doc, func(o corev1.ReplicationController) {
			if o.Spec.Template != nil {
				s.workload(head.Kind, o.ObjectMeta, *o.Spec.Template)
			}
		})
	case "apps/v1/Deployment":
		return decode(doc, func(o appsv1.Deployment) { s.workload(head.Kind, o.ObjectMeta, o.Spec.Template) })
	case "apps/v1/ReplicaSet":
		return decode(doc, func(o appsv1.ReplicaSet) { s.workload(head.Kind, o.ObjectMeta, o.Spec.Template) })
	case "apps/v1/DaemonSet":
		return decode(doc, func(o appsv1.DaemonSet) { s.workload(head.Kind, o.ObjectMeta, o.Spec.Template) })
	case "apps/v1/StatefulSet":
		return decode(doc, func(o appsv1.StatefulSet) {
			w := s.workload(head.Kind, o.ObjectMeta, o.Spec.Template)
			for _, c := range o.Spec.VolumeClaimTemplates {
				w.Claims = append(w.Claims, c.Name)
			}
		})
	case "batch/v1/Job":
		return decode(doc, func(o batchv1.Job) { s.workload(head.Kind, o.ObjectMeta, o.Spec.Template) })
	case "batch/v1/CronJob":
		return decode(doc, func(o batchv1.CronJob) { s.workload(head.Kind, o.ObjectMeta, o.Spec.JobTemplate.Spec.Template) })
	case "v1/ConfigMap":
		return decode(doc, func(o corev1.ConfigMap) { put(&s.ConfigMaps, o.ObjectMeta, o) })
	case "v1/Secret":
		return decode(doc, func(o corev1.Secret) { put(&s.Secrets, o.ObjectMeta, o) })
	case "v1/ServiceAccount":
		return decode(doc, func(o corev1.ServiceAccount) { put(&s.Accounts, o.ObjectMeta, o) })
	}
	return nil // internal/kubepod notes kinds that are unknown
}

func decode[T any](doc []byte, add func(T)) error {
	var o T
	if err := yaml.UnmarshalStrict(doc, &o); err != nil {
		return err
	}
	add(o)
	return nil
}

func put[T any](m *map[Key]T, meta metav1.ObjectMeta, o T) {
	if *m == nil {
		*m = map[Key]T{}
	}
	(*m)[Key{meta.Namespace, meta.Name}] = o
}

func (s *Set) workload(kind string, meta metav1.ObjectMeta, t corev1.PodTemplateSpec) *Workload {
	name := meta.Name
	if name == "" {
		name = meta.GenerateName
	}
	s.Workloads = append(s.Workloads, Workload{Kind: kind, Namespace: meta.Namespace, Name: name, Pod: t})
	return &s.Workloads[len(s.Workloads)-1]
}
