// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestShapeOf(t *testing.T) {
	h := configs.Hypervisor{DefaultVCPUs: 1, DefaultMemoryMiB: 512, OverheadMemoryMiB: 96}
	m := Machine{CPUs: 8, MemoryMiB: 64 << 10}
	res := func(memory, quota int64, period, shares uint64) *specs.Spec {
		return &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
		}}}
	}
	ann := func(kv ...string) *specs.Spec {
		s := res(1<<30, 0, 0, 0)
		s.Annotations = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			s.Annotations["io.kubernetes.cri.sandbox-"+kv[i]] = kv[i+1]
		}
		return s
	}
	crio := func(key, value string) *specs.Spec {
		return &specs.Spec{Annotations: map[string]string{key: value}}
	}
	bigger := h
	bigger.DefaultVCPUs, bigger.MaxVCPUs = 4, 6
	for _, tt := range []struct {
		name string
		h    configs.Hypervisor
		spec *specs.Spec
		want Shape
		err  string
	}{
		{name: "nothing asked", h: h, spec: &specs.Spec{}, want: Shape{1, 640}},
		{name: "half a CPU is one", h: h, spec: res(0, 50000, 100000, 0), want: Shape{1, 640}},
		{name: "a CPU and a bit is two", h: h, spec: res(0, 100001, 100000, 0), want: Shape{2, 640}},
		{name: "no period is the kernel's", h: h, spec: res(0, 300000, 0, 0), want: Shape{3, 640}},
		{name: "five CPUs are six", h: h, spec: res(0, 500000, 100000, 0), want: Shape{6, 640}},
		{name: "as many as the host has", h: h, spec: res(0, 6400000, 100000, 0), want: Shape{8, 640}},
		{name: "as many as configured", h: bigger, spec: res(0, 6400000, 100000, 0), want: Shape{6, 640}},
		{name: "a limit below the default", h: bigger, spec: res(0, 100000, 100000, 0), want: Shape{1, 640}},
		{name: "shares below the default", h: bigger, spec: res(0, 0, 0, 1024), want: Shape{4, 640}},
		{name: "shares of two CPUs", h: h, spec: res(0, -1, 100000, 2048), want: Shape{2, 640}},
		{name: "256 MiB", h: h, spec: res(256<<20, 0, 0, 0), want: Shape{1, 384}},
		{name: "a byte more than 1 GiB", h: h, spec: res(1<<30+1, 0, 0, 0), want: Shape{1, 1152}},
		{name: "3 GiB and 48 MiB to keep account of them", h: h, spec: res(3<<30, 0, 0, 0), want: Shape{1, 3328}},
		{name: "10 GiB", h: h, spec: res(10<<30, 0, 0, 0), want: Shape{1, 10496}},
		{name: "no more than what fits", h: h, spec: res(416<<20-416<<14, 0, 0, 0), want: Shape{1, 512}},
		{name: "a limit of one byte", h: h, spec: res(1, 0, 0, 0), want: Shape{1, 128}},
		{name: "unlimited by a large number", h: h, spec: res(9223372036854771712, 0, 0, 0), want: Shape{1, 640}},
		{name: "more than the host has", h: h, spec: res(64<<30, 0, 0, 0), err: "above the host's memory of 65536 MiB"},
		{
			name: "annotations first", h: h, spec: ann("memory", "268435456", "cpu-quota", "200000", "cpu-period", "100000"),
			want: Shape{2, 384},
		},
		{name: "annotation zero is no limit", h: h, spec: ann("memory", "0", "cpu-shares", "2"), want: Shape{1, 640}},
		{
			name: "an annotation that is no number", h: h, spec: ann("memory", "lots"),
			err: `sandbox-memory: "lots" is not a number`,
		},
		{name: "quota without limit, period and shares", h: h, spec: ann("cpu-quota", "-1", "cpu-period", "100000",
			"cpu-shares", "3000", "memory", "0"), want: Shape{3, 640}},
		{
			name: "quota below shares", h: h, spec: ann("cpu-quota", "50000", "cpu-period", "100000", "cpu-shares", "3000"),
			want: Shape{1, 640},
		},
		{name: "another period", h: h, spec: ann("cpu-quota", "40000", "cpu-period", "20000"), want: Shape{2, 640}},
		{name: "period zero is the kernel's", h: h, spec: ann("cpu-quota", "200000", "cpu-period", "0"), want: Shape{2, 640}},
		{name: "CRI-O", h: h, spec: crio(contract.CRIOPodResources,
			`{"cpu_period":100000,"cpu_quota":200000,"cpu_shares":2,"memory_limit_in_bytes":268435456}`), want: Shape{2, 384}},
		{
			name: "CRI-O's newer name", h: h, spec: crio(contract.CRIOPodResourcesNew, `{"cpu_shares":4096}`),
			want: Shape{4, 640},
		},
		{name: "CRI-O without limits", h: h, spec: crio(contract.CRIOPodResourcesNew, `null`), want: Shape{1, 640}},
		{
			name: "CRI-O's annotation that is no JSON", h: h, spec: crio(contract.CRIOPodResourcesNew, `{`),
			err: "annotation " + contract.CRIOPodResourcesNew,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ShapeOf(tt.h, m, tt.spec)
			if tt.err != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("ShapeOf() = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ShapeOf() (-want +got):\n%s", diff)
			}
		})
	}
}

// A VM's memory beyond its pod's limit is bounded for any limit: the overhead of a RuntimeClass is one
// figure (deploy/runtimeclass.yaml).
func TestAVMIsNotMuchLargerThanItsPodsLimit(t *testing.T) {
	h := configs.Default().Hypervisor
	for limit := int64(16); limit < 64<<10; limit += 13 { // MiB
		bytes := limit << 20
		got, err := ShapeOf(h, Machine{CPUs: 2, MemoryMiB: 1 << 20},
			&specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &bytes},
			}}})
		if err != nil {
			t.Fatal(err)
		}
		beyond := int64(got.MemoryMiB) - limit
		if most := int64(h.OverheadMemoryMiB) + limit/64 + 127; beyond < int64(h.OverheadMemoryMiB) || beyond > most {
			t.Errorf("the VM of a limit of %d MiB has %d MiB more, want %d to %d", limit, beyond, h.OverheadMemoryMiB, most)
		}
	}
}

// FuzzShape holds shapes to the grid, and to their limits.
func FuzzShape(f *testing.F) {
	f.Add("1", "100000", "100000", "2")
	f.Fuzz(func(t *testing.T, memory, quota, period, shares string) {
		defer worktest.Bound(t, len(memory)+len(quota)+len(period)+len(shares))()
		h := configs.Hypervisor{DefaultVCPUs: 1, DefaultMemoryMiB: 512, OverheadMemoryMiB: 96}
		got, err := ShapeOf(h, Machine{CPUs: 16, MemoryMiB: 1 << 20}, &specs.Spec{Annotations: map[string]string{
			contract.CRISandboxMemory: memory, contract.CRISandboxCPUQuota: quota,
			contract.CRISandboxCPUPeriod: period, contract.CRISandboxCPUShares: shares,
		}})
		if err == nil && (got.VCPUs < 1 || got.VCPUs > 16 || got.MemoryMiB < 96 || got.MemoryMiB > 1<<20 ||
			got.MemoryMiB%128 != 0) {
			t.Errorf("ShapeOf() = %+v", got)
		}
	})
}
