// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package testvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNeedSkipsWithTheReason(t *testing.T) {
	t.Setenv("COCO_REQUIRE", "") // where all is required, Need fails instead
	t.Setenv("COCO_GUEST_DIR", t.TempDir())
	ran := false
	t.Run("inner", func(t *testing.T) {
		Need(t, GuestImage)
		ran = true
	})
	if ran {
		t.Error("Need did not skip without a guest image")
	}
	if err := GuestImage.check(); err == nil || !strings.Contains(err.Error(), "make image") {
		t.Errorf("reason = %v, want one that says what to do", err)
	}
	if Has(GuestImage) {
		t.Error("Has says yes")
	}
}

func TestExactlyOneCgroupVersion(t *testing.T) {
	if Has(Cgroupv1) == Has(Cgroupv2) {
		t.Errorf("cgroup v1 %v, v2 %v", Cgroupv1.check(), Cgroupv2.check())
	}
}

func TestRepoRootHasTheModule(t *testing.T) {
	if _, err := os.Stat(filepath.Join(RepoRoot(), "go.mod")); err != nil {
		t.Error(err)
	}
}
