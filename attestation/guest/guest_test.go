// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// A machine makes evidence of the type that it is asked for, or none.
func TestThereIsNoFallBack(t *testing.T) {
	root := t.TempDir()
	if a, err := New(root, "tpm"); a != nil || !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "dev/tpm0") {
		t.Errorf("without a TPM: %v, %v", a, err)
	}
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "dev/tpm0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tee := range []string{"snp", "tdx"} {
		if a, err := New(root, tee); a != nil || !errdefs.IsNotFound(err) {
			t.Errorf("type %q without the kernel's interface: %v, %v", tee, a, err)
		}
	}
	for _, tee := range []string{"", "sample", "az-snp-vtpm"} {
		if a, err := New(root, tee); a != nil || !errdefs.IsNotImplemented(err) {
			t.Errorf("type %q: %v, %v", tee, a, err)
		}
	}
	a, err := New(root, "tpm")
	if err != nil || a.TEE() != "tpm" {
		t.Fatal(err)
	}
	if text, err := a.Evidence(t.Context(), []byte{1}); text != nil || err == nil {
		t.Errorf("a device that does not answer: %s, %v", text, err)
	}
	if err := os.Remove(filepath.Join(root, "dev/tpm0")); err != nil {
		t.Fatal(err)
	}
	if text, err := a.Evidence(t.Context(), []byte{1}); text != nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a device that has gone: %s, %v", text, err)
	}
}
