// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"iter"
	"os"
	"testing"
)

// signedKernel is a distribution's kernel, as it is found on most development machines.
func signedKernel(t testing.TB) []byte {
	t.Helper()
	for _, p := range []string{
		os.Getenv("COCO_SIGNED_KERNEL"), "/var/tmp/w/k/boot/vmlinuz-6.12.117+deb13-cloud-amd64",
		"../../dist/guest/vmlinuz",
	} {
		if b, err := os.ReadFile(p); err == nil {
			return b
		}
	}
	t.Skip("no signed kernel: set COCO_SIGNED_KERNEL to one")
	return nil
}

// windows yields every run of n bytes of b.
func windows(b []byte, n int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := 0; i+n <= len(b); i++ {
			if !yield(b[i : i+n]) {
				return
			}
		}
	}
}
