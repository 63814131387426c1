// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsable(t *testing.T) {
	const hw, soft = "processor\t: 0\nflags\t\t: fpu vme svm lm\n", "processor\t: 0\nflags\t\t: fpu vme lm\n"
	tests := []struct {
		name  string
		files map[string]string
		want  string // "" means usable
	}{
		{"a host with svm", map[string]string{"dev/kvm": "", "proc/cpuinfo": hw}, ""},
		{"no device", map[string]string{"proc/cpuinfo": hw}, "there is no /dev/kvm"},
		{
			"a guest of PVM",
			map[string]string{"dev/kvm": "", "proc/cpuinfo": soft, "sys/module/kvm_pvm/x": ""},
			"PVM hypervisor",
		},
		{"a device without hardware", map[string]string{"dev/kvm": "", "proc/cpuinfo": soft}, "neither vmx nor svm"},
		{
			"a flag whose name contains it",
			map[string]string{"dev/kvm": "", "proc/cpuinfo": "flags : xsvm svm_lock\n"},
			"neither",
		},
		{"no cpuinfo", map[string]string{"dev/kvm": ""}, "cpuinfo"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				p := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := Usable(root)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Usable() = %v, want %q", err, tt.want)
			}
		})
	}
}
