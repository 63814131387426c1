// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWithRoom(t *testing.T) {
	const mib = 1 << 20
	v1, v2 := t.TempDir(), t.TempDir()
	for file, text := range map[string]string{
		filepath.Join(v1, "kubepods/memory.limit_in_bytes"):                "9223372036854771712\n",
		filepath.Join(v1, "kubepods/burstable/memory.limit_in_bytes"):      "9223372036854771712\n",
		filepath.Join(v1, "kubepods/burstable/pod1/memory.limit_in_bytes"): "209715200\n", // 200 MiB
		filepath.Join(v1, "full/memory.limit_in_bytes"):                    "104857600\n", // 100 MiB
		filepath.Join(v2, "kubepods/burstable/pod1/memory.max"):            "max\n",
		filepath.Join(v2, "kubepods/burstable/pod2/memory.max"):            "209715200\n",
		filepath.Join(v1, "slow/cpu.cfs_quota_us"):                         "2000\n",
		filepath.Join(v1, "slow/cpu.cfs_period_us"):                        "100000\n",
		filepath.Join(v1, "free/cpu.cfs_quota_us"):                         "-1\n",
		filepath.Join(v1, "free/cpu.cfs_period_us"):                        "100000\n",
		filepath.Join(v2, "slow2/cpu.max"):                                 "9999 100000\n",
		filepath.Join(v2, "fast2/cpu.max"):                                 "10000 100000\n",
		filepath.Join(v2, "free2/cpu.max"):                                 "max 100000\n",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hs := []Hierarchy{{Mount: v1}, {Mount: v2, V2: true}}
	for _, tc := range []struct {
		name, path string
		need       uint64
		want       string
	}{
		{"enough", "/kubepods/burstable/pod1/c", 200 * mib, "/kubepods/burstable/pod1/c"},
		{"the pod's group is too small", "/kubepods/burstable/pod1/c", 201 * mib, "/kubepods/burstable/coco-c"},
		{"so in v2", "/kubepods/burstable/pod2/c", 201 * mib, "/kubepods/burstable/coco-c"},
		{"nothing is limited", "/other/c", 1 << 50, "/other/c"},
		{"at the top", "/full/c", 101 * mib, "/coco-c"},
		{"the group itself", "/full", 101 * mib, "/coco-full"},
		{"no path", "", 1, ""},
		{"hardly any processor time", "/slow/pod/c", 1, "/coco-c"},
		{"so in v2", "/slow2/c", 1, "/coco-c"},
		{"a tenth of a processor", "/fast2/c", 1, "/fast2/c"},
		{"no quota", "/free/c", 1, "/free/c"},
		{"no quota in v2", "/free2/c", 1, "/free2/c"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := WithRoom(hs, tc.path, tc.need)
			if got.Path != tc.want || err != nil || (got.Short != "") != (got.Path != tc.path) {
				t.Errorf("WithRoom(%q, %d) = %+v, %v, want %q", tc.path, tc.need, got, err, tc.want)
			}
		})
	}
	if _, err := WithRoom(hs, "/", 1); err == nil {
		t.Error("the root cgroup is accepted")
	}
}
