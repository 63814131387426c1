// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

// TestValuesAreReadAsKubectlReadsThem compares with testdata/kubectl.json, made by the library that kubectl uses.
func TestValuesAreReadAsKubectlReadsThem(t *testing.T) {
	raw, err := os.ReadFile("testdata/kubectl.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct{ Vectors []struct{ In, Out string } }
	if err := json.Unmarshal(raw, &golden); err != nil || len(golden.Vectors) < 50 {
		t.Fatalf("%d vectors, %v", len(golden.Vectors), err)
	}
	for _, v := range golden.Vectors {
		text := v.In
		if !strings.Contains(text, "a: ") {
			text = "a: " + text
		}
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
			t.Errorf("%q: %v", v.In, err)
			continue
		}
		r := newReader(len(text))
		n := r.fields(doc.Content[0], "", nil)["a"]
		got := "error"
		switch {
		case n.Kind == yaml.MappingNode:
			m := map[string]json.RawMessage{}
			for k, f := range r.fields(n, "", nil) {
				m[k] = json.RawMessage(f.Value)
				if f.Kind == yaml.MappingNode {
					m[k] = json.RawMessage(fmt.Sprintf("{%q:%s}", f.Content[0].Value, f.Content[1].Value))
				}
			}
			if b, err := json.Marshal(m); err == nil && len(r.errs) == 0 {
				got = string(b)
			}
		default:
			if q, ok := quantityText(n); ok {
				got = q
			}
		}
		want := v.Out
		switch {
		case strings.HasPrefix(want, `"`):
			want = want[1 : len(want)-1]
		case want == "true" || want == "false" || want == "null":
			want = "error" // of a quantity
		}
		if got != want && v.In != ".inf" { // which is no quantity either, as is told later
			t.Errorf("%q is read as %s, want %s", v.In, got, want)
		}
	}
}

func TestOctalQuantities(t *testing.T) {
	for value, want := range map[string]string{
		"0777": "511", "'0777'": "777", "0x10": "16", "1_000": "1000",
		"010Mi": "10485760",
	} {
		m, err := Parse([]byte(pod("containers: [{name: a, resources: {limits: {memory: " + value + "}}}]")))
		if err != nil || m.Pods[0].Annotations[contract.CRISandboxMemory] != want {
			t.Errorf("memory: %s is %+v, %v, want %s", value, m, err, want)
		}
	}
}

func TestMergeKeysOfAPod(t *testing.T) {
	text := "apiVersion: v1\nkind: List\nitems:\n" +
		"- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {runtimeClassName: coco, containers: [&c {name: a, " +
		"resources: &r {limits: {cpu: 2}}}]}}\n" +
		"- {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {runtimeClassName: coco, containers: [{<<: *c, name: b}, " +
		"{name: c, resources: {<<: *r}}]}}\n"
	m, err := Parse([]byte(text))
	if err != nil || len(m.Pods) != 2 || m.Pods[1].Annotations[contract.CRISandboxCPUQuota] != "400000" {
		t.Errorf("Parse = %+v, %v, want pods of 2 and 4 CPUs", m, err)
	}
}

func TestUnknownKindsArePassedOver(t *testing.T) {
	good := pod("containers: [{name: a}]") + "---\n"
	for text, want := range map[string]string{
		"apiVersion: v1\nkind: Rocket\n":                                         `kind "Rocket" of apiVersion "v1" is unknown here and passed over`,
		"apiVersion: serving.knative.dev/v1\nkind: Service\n":                    `kind "Service" of apiVersion "serving.knative.dev/v1"`,
		"apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\n":                     `kind "Job" of apiVersion "batch.volcano.sh/v1alpha1"`,
		"apiVersion: extensions/v1beta1\nkind: Deployment\n":                     `kind "Deployment"`,
		"apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec: {template: 1}\n": `if it makes pods, they are not measured`,
		"apiVersion: v1\nkind: Service\n":                                        "",
		"apiVersion: networking.k8s.io/v1\nkind: Ingress\n":                      "",
	} {
		m, err := Parse([]byte(good + text))
		if err != nil || len(m.Pods) != 1 || (want == "") != (len(m.Notes) == 0) || want != "" &&
			!strings.Contains(m.Notes[0], want) {
			t.Errorf("%q: Parse = %+v, %v, want a note with %q", text, m, err, want)
		}
	}
}

// aliasBomb is a list of lists of aliases, as many levels as lists may have.
func aliasBomb(width int) string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: List\nitems:\n- &l0 {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: " +
		"{containers: [{name: a}]}}\n")
	for level := 1; level <= 6; level++ {
		fmt.Fprintf(&b, "- &l%d {apiVersion: v1, kind: List, items: [%s]}\n", level,
			strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d,", level-1), width), ","))
	}
	return b.String()
}

func TestHostileManifestsTakeLittleWork(t *testing.T) {
	const n = 20_000
	merges := "x: &m0 {a: 1}\n"
	for i := 1; i < 9; i++ {
		merges += fmt.Sprintf("x%d: &m%d {<<: [%s]}\n", i, i,
			strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*m%d,", i-1), 30), ","))
	}
	for name, text := range map[string]string{
		"aliases of lists": aliasBomb(40),
		"aliases of containers": "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [" +
			"&c {name: a, resources: {limits: {" + strings.Repeat("a", 1) + ": 1}}}" + strings.Repeat(",*c", n) + "]}\n",
		"merges of merges":   "apiVersion: v1\nkind: Pod\n" + merges + "<<: *m8\n",
		"many problems":      "apiVersion: v1\nkind: Pod\nspec: {" + strings.Repeat("a: 1,", n) + "}\n",
		"many unknown kinds": strings.Repeat("kind: x\n---\n", n),
		"a long kind":        "kind: " + strings.Repeat("x", 10*n),
		"long digits":        pod("containers: [{name: a, resources: {limits: {cpu: " + strings.Repeat("1", 10*n) + "}}}]"),
		"flow lists":         strings.Repeat("[", n),
		"flow maps":          strings.Repeat("{a: ", n),
		"block lists":        strings.Repeat("- ", n),
		"question marks":     strings.Repeat("? ", n),
		"anchors":            strings.Repeat("&a [", n),
		"tags":               strings.Repeat("!!map {", n),
		"quotes":             "a: \"" + strings.Repeat("\\\n", n),
		"comments":           strings.Repeat("#\n", n),
		"documents":          strings.Repeat("---\n", n),
	} {
		t.Run(name, func(t *testing.T) {
			defer worktest.Times(t, len(text), 2)()
			m, err := Parse([]byte(text))
			if err == nil && name != "aliases of containers" || err != nil && len(err.Error()) > 64<<10 {
				t.Errorf("Parse gives %d pods and an error of %d bytes, want a short error", len(m.Pods), len(fmt.Sprint(err)))
			}
		})
	}
}
