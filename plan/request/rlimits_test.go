// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/plan/request"
)

func TestMergeRlimits(t *testing.T) {
	l := func(name string, soft uint64) specs.POSIXRlimit { return specs.POSIXRlimit{Type: name, Soft: soft} }
	got := request.MergeRlimits([]specs.POSIXRlimit{l("A", 1)}, []specs.POSIXRlimit{l("A", 2), l("B", 2)},
		[]specs.POSIXRlimit{l("B", 3), l("C", 3)})
	if d := cmp.Diff([]specs.POSIXRlimit{l("A", 1), l("B", 2), l("C", 3)}, got); d != "" {
		t.Error(d)
	}
}
