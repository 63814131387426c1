// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

func pod(spec string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns}\nspec: {runtimeClassName: coco, " + spec + "}\n"
}

// Expectations are what Kubernetes' own code makes of these pods (component-helpers v0.37.2 and kubelet 1.37.2; the
// same code agreed on 20000 pods made at random).
func TestSandboxResources(t *testing.T) {
	for _, tt := range []struct {
		name, spec            string
		memory, quota, shares string
	}{
		{"nothing", "containers: [{name: a}]", "0", "0", "2"},
		{
			"limits are requests", "containers: [{name: a, resources: {limits: {cpu: 500m, memory: 1Gi}}}]", "1073741824",
			"50000", "512",
		},
		{"requests only", "containers: [{name: a, resources: {requests: {cpu: '2', memory: 1Gi}}}]", "0", "0", "2048"},
		{
			"a request below the limit", "containers: [{name: a, resources: {limits: {cpu: 2}, requests: {cpu: 100m}}}]", "0",
			"200000", "102",
		},
		{"the least quota", "containers: [{name: a, resources: {limits: {cpu: 1m}}}]", "0", "1000", "2"},
		{"less than a thousandth", "containers: [{name: a, resources: {limits: {cpu: 100u}}}]", "0", "1000", "2"},
		{"the most shares", "containers: [{name: a, resources: {requests: {cpu: 1000}}}]", "0", "0", "262144"},
		{"the sum", "containers: [{name: a, resources: {limits: {cpu: 1, memory: 1M}}}, {name: b, resources: {limits: " +
			"{cpu: 1, memory: 1M}}}]", "2000000", "200000", "2048"},
		{"an init container", "initContainers: [{name: i, resources: {limits: {cpu: 3}}}], containers: [{name: a, " +
			"resources: {limits: {cpu: 1}}}]", "0", "300000", "3072"},
		{"a sidecar", "initContainers: [{name: s, restartPolicy: Always, resources: {limits: {cpu: 1}}}, {name: i, " +
			"resources: {limits: {cpu: 3}}}], containers: [{name: a, resources: {limits: {cpu: 1}}}]", "0", "400000", "4096"},
		{
			"a sidecar that comes later", "initContainers: [{name: i, resources: {limits: {cpu: 3}}}, {name: s, " +
				"restartPolicy: Always, resources: {limits: {cpu: 1}}}], containers: [{name: a, resources: {limits: {cpu: 1}}}]",
			"0", "300000", "3072",
		},
		{"the pod's own", "resources: {limits: {cpu: 4, memory: 2Gi}}, containers: [{name: a, resources: {limits: {cpu: " +
			"1}}}]", "2147483648", "400000", "1024"},
		{"the pod's own requests", "resources: {requests: {cpu: 3}}, containers: [{name: a, resources: {requests: {cpu: " +
			"1}}}]", "0", "0", "3072"},
		{
			"the pod's own without its containers'", "resources: {limits: {cpu: 4}}, containers: [{name: a}]", "0",
			"400000", "4096",
		},
		{"overhead is not in it", "overhead: {cpu: 1, memory: 1Gi}, containers: [{name: a, resources: {limits: {memory: " +
			"1Mi}}}]", "1048576", "0", "2"},
		{
			"an exponent and a fraction", "containers: [{name: a, resources: {limits: {memory: 1.5e3, cpu: .5}}}]", "1500",
			"50000", "512",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Parse([]byte(pod(tt.spec)))
			if err != nil {
				t.Fatal(err)
			}
			pods := m.Pods
			want := map[string]string{
				contract.CRISandboxMemory: tt.memory, contract.CRISandboxCPUQuota: tt.quota,
				contract.CRISandboxCPUPeriod: "100000", contract.CRISandboxCPUShares: tt.shares,
			}
			if d := cmp.Diff(want, pods[0].Annotations); d != "" {
				t.Errorf("annotations (-want +got):\n%s", d)
			}
		})
	}
}

func TestEveryKindOfWorkload(t *testing.T) {
	const template = "template: {metadata: {annotations: {k: v}}, spec: {runtimeClassName: coco, hostNetwork: true, " +
		"containers: [{name: a}]}}"
	text := ""
	for kind, version := range map[string]string{
		"ReplicationController": "v1", "ReplicaSet": "apps/v1", "Deployment": "apps/v1", "StatefulSet": "apps/v1",
		"DaemonSet": "apps/v1", "Job": "batch/v1",
	} {
		text += "apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: x}\nspec: {" + template + "}\n---\n"
	}
	text += "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: x}\nspec: {schedule: x, jobTemplate: {spec: {" +
		template + "}}}\n---\n"
	text += "# nothing\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\n"
	text += "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {generateName: x}, spec: &s " +
		"{runtimeClassName: coco, hostNetwork: true, containers: [{name: a}]}}\n" +
		"- {apiVersion: v1, kind: Pod, metadata: {name: x, annotations: {k: v}}, spec: *s}\n"
	m, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	pods := m.Pods
	kinds := map[string]int{}
	for _, p := range pods {
		kinds[p.Kind]++
		if p.Name != "x" || p.RuntimeClass != "coco" || !slices.Equal(p.HostNamespaces, []string{"hostNetwork"}) ||
			p.Annotations["k"] != "v" && p.Kind != "Pod" {
			t.Errorf("%s = %+v", p, p)
		}
	}
	want := map[string]int{
		"ReplicationController": 1, "ReplicaSet": 1, "Deployment": 1, "StatefulSet": 1, "DaemonSet": 1,
		"Job": 1, "CronJob": 1, "Pod": 2,
	}
	if d := cmp.Diff(want, kinds); d != "" {
		t.Errorf("kinds (-want +got):\n%s", d)
	}
}

func TestJSONIsAManifestToo(t *testing.T) {
	m, err := Parse(
		[]byte(
			`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"a","resources":{"limits":{"memory":"1Gi"}}}]}}`))
	if err != nil || m.Pods[0].Annotations[contract.CRISandboxMemory] != "1073741824" {
		t.Errorf("Parse = %+v, %v", m, err)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "no pod"},
		{"no YAML", "a: [", "did not find"},
		{"no object", "- 1", "is not a mapping"},
		{
			"an unknown kind alone", "apiVersion: v1\nkind: Rocket\n",
			`no pod, nor a workload that makes pods; line 1: kind "Rocket"`,
		},
		{"no kind", "apiVersion: v1\n", "has no kind"},
		{"another API version", "apiVersion: apps/v1beta1\nkind: Deployment\nspec: {template: {spec: {containers: [{name: " +
			"a}]}}}\n", `want "apps/v1"`},
		{"a misspelt key of the pod", pod("continers: []"), `unknown key "continers"`},
		{
			"a misspelt key of a container", pod("containers: [{name: a, resource: {}}]"),
			`containers[0]: has an unknown key "resource"`,
		},
		{"a misspelt key of resources", pod("containers: [{name: a, resources: {limit: {}}}]"), `unknown key "limit"`},
		{"a key that occurs twice", pod("containers: [{name: a, resources: {limits: {cpu: 1, cpu: 2}}}]"), `"cpu" twice`},
		{
			"a bad quantity", pod("containers: [{name: a, resources: {limits: {memory: 1GB}}}]"),
			`limits: memory: "1GB" is not a quantity such as 500m, 2 or 1Gi`,
		},
		{"a negative quantity", pod("containers: [{name: a, resources: {limits: {memory: -1}}}]"), "is negative"},
		{
			"a quantity that is none", pod("containers: [{name: a, resources: {limits: {memory: true}}}]"),
			"memory is not a quantity",
		},
		{"no containers", pod("containers: []"), "has no containers"},
		{
			"no template", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {}\n",
			"Deployment d: has no template",
		},
		{"no spec", "apiVersion: v1\nkind: Pod\nmetadata: {name: d}\n", "Pod d: has no spec"},
		{"an annotation that is no string", "apiVersion: v1\nkind: Pod\nmetadata: {name: d, annotations: {a: 1}}\nspec: " +
			"{containers: [{name: a}]}\n", "annotation a: is not a string"},
		{"claims", pod("containers: [{name: a, resources: {claims: [{name: x}]}}]"), "has claims"},
		{"lists in lists", strings.Repeat("{kind: List, items: [", 20) + strings.Repeat("]}", 20), "too deep"},
		{"a merged key that is unknown", "apiVersion: v1\nkind: Pod\n<<: {a: 1}\n", `has an unknown key "a"`},
		{"a merge of no mapping", "apiVersion: v1\nkind: Pod\n<<: 1\n", "is not a mapping"},
		{"a merge of itself", "apiVersion: v1\nkind: Pod\nspec: &a {<<: *a}\n", "merges mappings that merge too many others"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods, err := Parse([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse = %+v, %v, want an error with %q", pods, err, tt.want)
			}
		})
	}
}

func TestAllProblemsAreReportedWithTheirLines(t *testing.T) {
	_, err := Parse([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  x: 1\n  containers:\n  - name: a\n " +
		"   y: 2\n"))
	if err == nil || !strings.Contains(err.Error(), "line 5:") || !strings.Contains(err.Error(), "line 8:") {
		t.Errorf("Parse = %v, want both problems", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(pod("containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]")))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte(aliasBomb(4)))
	f.Fuzz(func(t *testing.T, text []byte) {
		defer worktest.Bound(t, len(text))()
		m, err := Parse(text)
		for _, p := range m.Pods {
			if err == nil && p.Annotations[contract.CRISandboxMemory] == "" {
				t.Errorf("%s has no annotations", p)
			}
		}
	})
}
