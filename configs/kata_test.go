// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs_test

import (
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
)

const kata = contract.KataConfigPrefix

func TestKatasAnnotationsAreHonouredWhereOursWouldBe(t *testing.T) {
	c := configs.Default()
	c.Runtime.EnableAnnotations = append(c.Runtime.EnableAnnotations, "runtime.create_timeout")
	in := map[string]string{
		kata + "hypervisor.default_vcpus": "3", kata + "hypervisor.default_memory": "2048",
		kata + "runtime.create_container_timeout": "90",
		kata + "hypervisor.cc_init_data":          "read elsewhere", "other": "x",
	}
	out, notes := c.WithKata(in)
	if len(notes) > 0 {
		t.Errorf("notes: %v", notes)
	}
	got, err := c.WithAnnotations(out)
	if err != nil {
		t.Fatal(err)
	}
	if h := got.Hypervisor; h.DefaultVCPUs != 3 || h.DefaultMemoryMiB != 2048 ||
		got.Runtime.CreateTimeout != 90*time.Second {
		t.Errorf("vCPUs %d, memory %d, timeout %s", h.DefaultVCPUs, h.DefaultMemoryMiB, got.Runtime.CreateTimeout)
	}
	if len(in) != 5 {
		t.Errorf("the pod's annotations were changed: %v", in)
	}
	out, _ = c.WithKata(map[string]string{kata + "hypervisor.default_vcpus": "two"})
	if _, err := c.WithAnnotations(out); err == nil || !strings.Contains(err.Error(), "default_vcpus") {
		t.Errorf("a value that is none: %v", err)
	}
}

func TestKatasAnnotationsWithoutEffectAreTold(t *testing.T) {
	c := configs.Default()
	c.Runtime.EnableAnnotations = []string{"hypervisor.default_vcpus"}
	in := map[string]string{
		kata + "hypervisor.default_memory": "2048", kata + "hypervisor.image": "/x", kata + "agent.policy": "…",
		kata + "hypervisor.default_vcpus": "3", contract.ConfigPrefix + "hypervisor.default_vcpus": "2",
	}
	out, notes := c.WithKata(in)
	text := strings.Join(notes, "\n")
	for _, want := range []string{
		"default_memory has no effect: runtime.enable_annotations does not name hypervisor.default_memory_mib",
		contract.ConfigPrefix + "hypervisor.default_memory_mib", "hypervisor.image has no effect: coco has no such setting",
		"agent.policy has no effect", "default_vcpus has no effect beside " + contract.ConfigPrefix,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the notes lack %q:\n%s", want, text)
		}
	}
	got, err := c.WithAnnotations(out)
	if err != nil || got.Hypervisor.DefaultVCPUs != 2 || got.Hypervisor.DefaultMemoryMiB != c.Hypervisor.DefaultMemoryMiB {
		t.Errorf("%+v, %v", got.Hypervisor, err)
	}
}
