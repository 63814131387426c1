// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPidsOfAGroupAndThoseBelow(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"c/cgroup.procs": "12\n34\n", "c/inner/cgroup.procs": "56\n",
		"other/cgroup.procs": "78\n",
	} {
		file := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := At(root, "c").Pids()
	if d := cmp.Diff([]uint32{12, 34, 56}, got); d != "" || err != nil {
		t.Errorf("Pids() = %v, %v\n%s", got, err, d)
	}
	if got, err := At(root, "gone").Pids(); len(got) != 0 || err != nil {
		t.Errorf("Pids() of a group that is gone = %v, %v", got, err)
	}
}
