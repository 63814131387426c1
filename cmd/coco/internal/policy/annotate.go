// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/cmd/coco/internal/policy/images"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
)

// chooseAlgorithm takes the algorithm of the platform that the configuration is for.
func (o *genOptions) chooseAlgorithm() error {
	want := ""
	if o.config != "" {
		c, err := configs.Load(o.config)
		if err != nil {
			return err
		}
		want = map[string]string{"snp": "sha256", "tdx": "sha384"}[c.Hypervisor.Platform]
	}
	switch {
	case o.algorithm == "" && want != "":
		o.algorithm = want
	case o.algorithm == "":
		o.algorithm = "sha256"
	case want != "" && o.algorithm != want:
		return fmt.Errorf("--algorithm %s: the platform of --config takes %s", o.algorithm, want)
	}
	return nil
}

// bind puts a policy into initdata.
func (o *genOptions) bind(r *result) error {
	files, err := images.InitdataFiles(o.base)
	if err != nil {
		return err
	}
	files[policy.FileName] = string(r.text)
	if err := checkBroker(r.Policy, files); err != nil {
		return err
	}
	if r.doc, err = initdata.New(o.algorithm, files); err != nil {
		return err
	}
	r.Digest = r.doc.Algorithm + ":" + hex.EncodeToString(r.doc.Digest())
	r.Annotation, err = r.doc.Annotation()
	return err
}

// editor walks through manifests and changes their workloads.
type editor struct {
	by     map[int]*result // by the workload's place
	lock   bool
	number int
}

// annotated returns the texts with the annotations in their pods' templates.
func annotated(texts [][]byte, results []*result, lock bool) ([]*yaml.Node, error) {
	e := &editor{by: map[int]*result{}, lock: lock}
	for _, r := range results {
		e.by[r.at] = r
	}
	var out []*yaml.Node
	for _, text := range texts {
		dec := yaml.NewDecoder(bytes.NewReader(text))
		for {
			var doc yaml.Node
			err := dec.Decode(&doc)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			if len(doc.Content) == 1 {
				if err := e.object(doc.Content[0]); err != nil {
					return nil, err
				}
			}
			out = append(out, &doc)
		}
	}
	return out, nil
}

func (o *genOptions) writeManifests(w io.Writer, texts [][]byte, results []*result) error {
	docs, err := annotated(texts, results, o.lock)
	if err != nil {
		return err
	}
	return encodeAll(w, docs)
}

func encodeAll(w io.Writer, docs []*yaml.Node) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	for _, d := range docs {
		if err := enc.Encode(d); err != nil {
			return err
		}
	}
	return enc.Close()
}

// paths are the ways to a pod's template, by kind.
var paths = map[string][]string{
	"Pod": nil, "ReplicationController": {"spec", "template"}, "Deployment": {"spec", "template"},
	"ReplicaSet": {"spec", "template"}, "DaemonSet": {"spec", "template"}, "StatefulSet": {"spec", "template"},
	"Job": {"spec", "template"}, "CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// object changes one object, or those of a list, in the order in which package manifest counts them.
func (e *editor) object(n *yaml.Node) error {
	n = followed(n)
	kind := ""
	if k := member(n, "kind"); k != nil {
		kind = k.Value
	}
	if items := member(n, "items"); strings.HasSuffix(kind, "List") && items != nil {
		for _, i := range items.Content {
			if err := e.object(i); err != nil {
				return err
			}
		}
		return nil
	}
	path, ok := paths[kind]
	if !ok {
		return nil
	}
	r := e.by[e.number]
	e.number++
	if r == nil {
		return nil
	}
	for _, key := range path {
		if n = member(n, key); n == nil {
			return fmt.Errorf("%s has no %s", kind, key)
		}
	}
	set(made(made(n, "metadata"), "annotations"), contract.KataInitdata, r.Annotation)
	if e.lock {
		lockImages(member(n, "spec"), r.Images)
	}
	return nil
}

func lockImages(spec *yaml.Node, pinned map[string]string) {
	for _, list := range []string{"initContainers", "containers"} {
		cs := member(spec, list)
		if cs == nil {
			continue
		}
		for _, c := range cs.Content {
			if img := member(followed(c), "image"); img != nil && pinned[img.Value] != "" {
				img.Value = pinned[img.Value]
			}
		}
	}
}

func followed(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// member returns the value of a key of a mapping; nil if there is none.
func member(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return followed(n.Content[i+1])
		}
	}
	return nil
}

// made returns the mapping at a key and makes it if it is not there.
func made(n *yaml.Node, key string) *yaml.Node {
	if m := member(n, key); m != nil && m.Kind == yaml.MappingNode {
		return m
	}
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	put(n, key, m)
	return m
}

func set(n *yaml.Node, key, value string) {
	put(n, key, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value})
}

func put(n *yaml.Node, key string, v *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = v
			return
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, v)
}
