// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import "testing"

func TestMinFreeFollowsTheKernelsFormula(t *testing.T) {
	for _, c := range []struct {
		totalKiB uint64
		want     int
	}{{1, 128}, {16 << 10, 512}, {1 << 20, 4096}, {16 << 20, 16384}, {1 << 40, 262144}} {
		if got := minFreeKiB(c.totalKiB); got != c.want {
			t.Errorf("minFreeKiB(%d) = %d, want %d", c.totalKiB, got, c.want)
		}
	}
}
