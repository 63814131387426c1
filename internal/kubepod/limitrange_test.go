// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
)

func limits(items string) string {
	return "apiVersion: v1\nkind: LimitRange\nmetadata: {name: l, namespace: ns}\nspec: {limits: [" + items + "]}\n---\n"
}

// Expectations follow SetDefaults_LimitRangeItem and the admission plug-in LimitRanger of Kubernetes 1.37.
func TestLimitRangesOfTheSameText(t *testing.T) {
	bare := pod("containers: [{name: a}]")
	for _, tt := range []struct {
		name, text            string
		memory, quota, shares string
	}{
		{
			"defaults", limits("{type: Container, default: {cpu: 2, memory: 1Gi}, defaultRequest: {cpu: 1}}") + bare,
			"1073741824", "200000", "1024",
		},
		{"a limit is a request", limits("{type: Container, default: {cpu: 2}}") + bare, "0", "200000", "2048"},
		{"a maximum is a limit", limits("{type: Container, max: {cpu: 3}}") + bare, "0", "300000", "3072"},
		{"a minimum is a request", limits("{type: Container, min: {cpu: 500m}}") + bare, "0", "0", "512"},
		{
			"what the container says stays",
			limits("{type: Container, default: {cpu: 2, memory: 1Gi}}") + pod("containers: [{name: a, resources: {limits: "+
				"{cpu: 1}}}]"), "1073741824", "100000", "1024",
		},
		{"a request is not a limit", limits("{type: Container, default: {cpu: 2}}") + pod("containers: [{name: a, "+
			"resources: {requests: {cpu: 1}}}]"), "0", "200000", "1024"},
		{
			"each container and init container",
			limits("{type: Container, default: {cpu: 1}}") + pod("initContainers: [{name: s, restartPolicy: Always}], "+
				"containers: [{name: a}, {name: b}]"), "0", "300000", "3072",
		},
		{
			"another namespace", strings.Replace(limits("{type: Container, default: {cpu: 2}}"), "ns}", "other}", 1) + bare,
			"0", "0", "2",
		},
		{"claims are others' business", limits("{type: PersistentVolumeClaim, max: {storage: 1Gi}}") + bare, "0", "0", "2"},
		{"it comes after the pod", bare + "---\n" + limits("{type: Container, default: {cpu: 2}}"), "0", "200000", "2048"},
		{"two of them", limits("{type: Container, default: {cpu: 2}}") + limits("{type: Container, default: {memory: "+
			"1Mi}}") + bare, "1048576", "200000", "2048"},
		{"the pod's own", limits("{type: Container, default: {cpu: 2}}") + pod("resources: {limits: {cpu: 4}}, containers: "+
			"[{name: a}]"), "0", "400000", "4096"},
		{"within the bounds", limits("{type: Pod, max: {cpu: 4}}") + pod("containers: [{name: a, resources: {limits: {cpu: "+
			"4}}}]"), "0", "400000", "4096"},
	} {
		m, err := Parse([]byte(tt.text))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		a := m.Pods[0].Annotations
		if a[contract.CRISandboxMemory] != tt.memory || a[contract.CRISandboxCPUQuota] != tt.quota ||
			a[contract.CRISandboxCPUShares] != tt.shares {
			t.Errorf("%s: annotations %v, want memory %s, quota %s, shares %s", tt.name, a, tt.memory, tt.quota, tt.shares)
		}
		if later := tt.name == "it comes after the pod"; later != (len(m.Notes) == 1) {
			t.Errorf("%s: notes %q", tt.name, m.Notes)
		}
	}
}

func TestPodsThatALimitRangeRefuses(t *testing.T) {
	for text, want := range map[string]string{
		limits("{type: Container, max: {cpu: 1}}") + pod("containers: [{name: a, resources: {limits: {cpu: "+
			"2}}}]"): "has a limit of cpu more than LimitRange l allows: 2, not 1",
		limits("{type: Container, min: {memory: 1Ki}}") + pod("containers: [{name: a, resources: {requests: {memory: "+
			"1}}}]"): "has a request of memory less than LimitRange l allows: 1, not 1024",
		limits("{type: Pod, max: {cpu: 3}}") + pod("containers: [{name: a, resources: {limits: {cpu: 2}}}, {name: b, "+
			"resources: {limits: {cpu: 1500m}}}]"): "has limits of cpu more than LimitRange l allows: 3.5, not 3",
		limits("{type: Container, defaults: {cpu: 1}}") + pod(
			"containers: [{name: a}]"): `unknown key "defaults"`,
		limits("{type: Container, default: {cpu: 1x}}") + pod(
			"containers: [{name: a}]"): "is not a quantity",
		"apiVersion: v1\nkind: LimitRange\nmetadata: {name: l}\nspec: {limit: []}\n---\n" +
			pod("containers: [{name: a}]"): `unknown key "limit"`,
	} {
		if m, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse = %+v, %v, want an error with %q", m, err, want)
		}
	}
}
