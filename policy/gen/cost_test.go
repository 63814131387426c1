// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/engine"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// large is a pod of 5 containers with 40 variables each.
func large() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: large, namespace: ns}\nspec:\n" +
		"  automountServiceAccountToken: false\n  containers:\n")
	for i := range 5 {
		fmt.Fprintf(&b, "  - name: c%d\n    image: i:1\n    args: [serve, --port, \"80%d\"]\n    env:\n", i, i)
		for j := range 40 {
			fmt.Fprintf(&b, "    - {name: SETTING_%d_%d, value: \"value %d of container %d, https://example.org/%d\"}\n",
				i, j, j, i, i*j)
		}
	}
	return b.String()
}

// TestAPolicyIsSmall: what the initdata annotation has of a large pod's policy.
func TestAPolicyIsSmall(t *testing.T) {
	p, _, err := generate(t, large(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := policy.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	const most = 32 << 10
	if t.Logf("%d bytes, %d compressed", len(text), packed.Len()); packed.Len() > most {
		t.Errorf("a policy of 5 containers with 40 variables each has %d bytes, compressed %d, more than %d", len(text),
			packed.Len(), most)
	}
}

// BenchmarkDecision is one decision about the last of 5 containers with 40 variables each.
func BenchmarkDecision(b *testing.B) {
	set := parse(b, large())
	in := Input{Workload: set.Workloads[0], Objects: set, Images: map[string]Image{"i:1": image()}}
	p, _, err := Policy(in)
	if err != nil {
		b.Fatal(err)
	}
	g, err := newGenerator(in)
	if err != nil {
		b.Fatal(err)
	}
	s := &shim{TB: b, generator: g, engine: engine.New(p), copied: map[string]bool{}}
	s.must("CreateSandbox", request.Sandbox(request.SandboxInput{
		ID: predict.SandboxID, Spec: &specs.Spec{Hostname: "large", Linux: &specs.Linux{Sysctl: s.sysctls()}},
		SharedShm: true, ShmBytes: 1 << 20,
	}))
	req := s.create(&s.pod.Containers[4], strings.Repeat("9", 64))
	for b.Loop() {
		if _, err := s.engine.Check("/grpc.AgentService/CreateContainer", req); err != nil {
			b.Fatal(err)
		}
	}
}
