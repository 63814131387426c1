// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestConfidential(t *testing.T) {
	const plain = "processor\t: 0\nflags\t\t: fpu sse hypervisor\n"
	for name, tt := range map[string]struct {
		cpuinfo string
		devices []string
		want    bool
	}{
		"a plain VM":    {plain, []string{"serial8250"}, false},
		"an SNP guest":  {plain, []string{"sev-guest"}, true},
		"a TD":          {"flags : fpu tdx_guest sse\n", []string{"serial8250"}, true},
		"no flags":      {"processor : 0\n", []string{"serial8250"}, true},
		"no processor":  {"", []string{"serial8250"}, true},
		"without sysfs": {plain, nil, true},
	} {
		root := t.TempDir()
		for _, d := range append(tt.devices, "") {
			if d == "" && tt.devices == nil {
				continue
			}
			if err := os.MkdirAll(filepath.Join(root, "sys/bus/platform/devices", d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if tt.cpuinfo != "" {
			if err := os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, "proc/cpuinfo"), []byte(tt.cpuinfo), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := Confidential(root); got != tt.want {
			t.Errorf("%s: Confidential() = %v, want %v", name, got, tt.want)
		}
	}
}
