// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

// A pair of keys is there as a whole or not at all, and never replaces another one.
func TestWriteKeyPair(t *testing.T) {
	dir := t.TempDir()
	private, public := filepath.Join(dir, "k.key"), filepath.Join(dir, "none", "k.pub")
	cmd := &cobra.Command{}
	if err := WriteKeyPair(cmd, private, []byte("secret"), public, []byte("public")); err == nil {
		t.Error("the public half was written into a directory that is not there")
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("after the failure there are %v, %v", list, err)
	}
	public = filepath.Join(dir, "k.pub")
	if err := WriteKeyPair(cmd, private, []byte("secret"), public, []byte("public")); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(private); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the private half: %v, %v", st, err)
	}
	if err := WriteKeyPair(cmd, private, []byte("other"), public, []byte("other")); err == nil {
		t.Error("a key was overwritten")
	}
	for path, want := range map[string]string{private: "secret", public: "public"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v", path, got, err)
		}
	}
}
