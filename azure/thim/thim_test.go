// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package thim

import "testing"

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"vcekCert":"A","tcbm":"DB18000000000004","certificateChain":"B"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b)
		if err == nil && len(d.Chain) < 3 {
			t.Fatalf("%+v", d)
		}
		if err := certificates(b); err == nil && len(b) < 54 {
			t.Fatalf("%q has two certificates", b)
		}
	})
}
