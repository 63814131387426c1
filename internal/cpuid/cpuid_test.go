// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cpuid

import (
	"runtime"
	"testing"
)

func TestQuery(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("only amd64 has the instruction")
	}
	if r := Query(0, 0); r.EAX == 0 || r.EBX == 0 {
		t.Errorf("Query(0) = %+v, want the highest leaf and the vendor", r)
	}
	if r := Query(0x8fffffff, 0); r != (Regs{}) {
		t.Errorf("Query() of a leaf beyond the last = %+v, want zeros", r)
	}
}
