// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
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
		{name: "3 GiB", h: h, spec: res(3<<30, 0, 0, 0), want: Shape{1, 3584}},
		{name: "10 GiB", h: h, spec: res(10<<30, 0, 0, 0), want: Shape{1, 12 << 10}},
		{name: "unlimited by a large number", h: h, spec: res(9223372036854771712, 0, 0, 0), want: Shape{1, 640}},
		{name: "more than the host has", h: h, spec: res(64<<30, 0, 0, 0), err: "above the host's memory of 65536 MiB"},
		{name: "annotations first", h: h, spec: ann("memory", "268435456", "cpu-quota", "200000", "cpu-period", "100000"), want: Shape{2, 384}},
		{name: "annotation zero is no limit", h: h, spec: ann("memory", "0", "cpu-shares", "2"), want: Shape{1, 640}},
		{name: "an annotation that is no number", h: h, spec: ann("memory", "lots"), err: `sandbox-memory: "lots" is not a number`},
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

// FuzzShape holds shapes to the grid, and to their limits.
func FuzzShape(f *testing.F) {
	f.Add("1", "100000", "100000", "2")
	f.Fuzz(func(t *testing.T, memory, quota, period, shares string) {
		h := configs.Hypervisor{DefaultVCPUs: 1, DefaultMemoryMiB: 512, OverheadMemoryMiB: 96}
		got, err := ShapeOf(h, Machine{CPUs: 16, MemoryMiB: 1 << 20}, &specs.Spec{Annotations: map[string]string{
			annMemory: memory, annQuota: quota, annPeriod: period, annShares: shares,
		}})
		if err == nil && (got.VCPUs < 1 || got.VCPUs > 16 || got.MemoryMiB < 96 || got.MemoryMiB > 1<<20 || got.MemoryMiB%128 != 0) {
			t.Errorf("ShapeOf() = %+v", got)
		}
	})
}
