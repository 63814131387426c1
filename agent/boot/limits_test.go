// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// All limits are raised that the kernel has; one that it lacks is named and keeps back no other.
func TestLimitsOfTheWholeKernel(t *testing.T) {
	root := t.TempDir() + "/"
	for _, l := range kernelLimits {
		if err := os.MkdirAll(filepath.Dir(root+l.file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+l.file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := raiseLimits(root); err != nil {
		t.Error(err)
	}
	for file, want := range map[string]string{
		"fs/inotify/max_user_watches": "1048576", "fs/inotify/max_user_instances": "8192", "vm/overcommit_memory": "1",
		"kernel/pid_max": "4194304", "vm/max_map_count": "1048576",
	} {
		if got, err := os.ReadFile(root + file); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v, want %s", file, got, err, want)
		}
	}
	missing := kernelLimits[0].file
	if err := os.Remove(root + missing); err != nil {
		t.Fatal(err)
	}
	last := root + kernelLimits[len(kernelLimits)-1].file
	if err := os.WriteFile(last, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := raiseLimits(root); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("without %s: %v", missing, err)
	}
	if got, err := os.ReadFile(last); err != nil || string(got) != "1" {
		t.Errorf("after a limit that is missing, %s is %q, %v", last, got, err)
	}
}
