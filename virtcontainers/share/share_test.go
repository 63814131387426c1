// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/plan/volume"
)

func TestTwoVolumesOfOneNameHaveTwoPlaces(t *testing.T) {
	s := New(Options{})
	a, b := s.get(volume.Memory, volume.Owned, "/x/data"), s.get(volume.Memory, volume.Owned, "/y/data")
	if a.guest == b.guest || s.get(volume.Memory, volume.Owned, "/x/data") != a {
		t.Errorf("places %s and %s", a.guest, b.guest)
	}
	long := s.get(volume.Disk, volume.Owned, "/"+strings.Repeat("x/", 200))
	if n := len(filepath.Base(long.guest)); n > maxName {
		t.Errorf("a name of %d bytes", n)
	}
}
