// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package worktest

import (
	"fmt"
	"strings"
	"testing"
)

// recorder is a test that only notes that it failed.
type recorder struct {
	testing.TB
	said string
}

func (r *recorder) Helper()           {}
func (r *recorder) Error(args ...any) { r.said += fmt.Sprint(args...) }

var sink []byte

func TestBoundCountsMemory(t *testing.T) {
	for _, tt := range []struct {
		name        string
		size, alloc int
		want        string
	}{
		{"little", 10, 1 << 20, ""},
		{"much for few bytes", 10, 40 << 20, "an input of 10 bytes takes 4"},
		{"much for many bytes", 1 << 20, 40 << 20, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &recorder{TB: t}
			end := Bound(r, tt.size)
			for range tt.alloc >> 20 {
				sink = make([]byte, 1<<20)
			}
			end()
			if tt.want == "" && r.said != "" || !strings.Contains(r.said, tt.want) {
				t.Errorf("Bound says %q, want %q", r.said, tt.want)
			}
		})
	}
}

func TestBoundCountsProcessorTimeWhereAsked(t *testing.T) {
	spin := func() string {
		r := &recorder{TB: t}
		end := Bound(r, 0)
		for start := used(); used()-start < baseCPU+baseCPU/4; {
		}
		end()
		return r.said
	}
	t.Setenv("COCO_FUZZ_CPU", "")
	if said := spin(); said != "" {
		t.Errorf("without COCO_FUZZ_CPU Bound says %q", said)
	}
	t.Setenv("COCO_FUZZ_CPU", "1")
	if said := spin(); !strings.Contains(said, "of a processor, more than 300ms") {
		t.Errorf("Bound says %q of a loop beyond its limit", said)
	}
}
