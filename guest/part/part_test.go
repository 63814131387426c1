// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package part

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/image/verity/partlist"
)

// compile makes a static program.
func compile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "p"),
		filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "p")
}

func TestAPartIsTheSameEachTimeAndVerifies(t *testing.T) {
	program := compile(t)
	parts, err := Build(t.Context(), map[string]string{"part-rego": program, contract.PartTrust: program})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Build(t.Context(), map[string]string{contract.PartTrust: program, "part-rego": program})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(parts, again); d != "" {
		t.Errorf("two builds differ: %s", d)
	}
	list, err := partlist.Parse(List(parts))
	if err != nil || len(list) != 2 || list[0].Name != "part-rego" || list[1].Name != contract.PartTrust {
		t.Fatalf("the list is %v, %v", list, err)
	}
	if p := parts[1]; list[1].Params().Hex() != p.Params.Hex() || uint64(len(p.Image)) != list[1].Params().Size() {
		t.Errorf("the list says %+v, the part is %+v with %d bytes", list[1], p.Params, len(p.Image))
	}
	text, err := os.ReadFile(program)
	if err != nil || !bytes.Contains(parts[1].Image, text[:verity.BlockSize]) {
		t.Errorf("the program is not in its part: %v", err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, parts[1].File())
	write := func(b []byte) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(parts[1].Image)
	if err := Verify(dir, list[1]); err != nil || !IsFile(parts[1].File()) {
		t.Errorf("Verify() = %v", err)
	}
	for _, at := range []int{0, len(parts[1].Image) / 2, len(parts[1].Image) - verity.BlockSize} {
		spoiled := bytes.Clone(parts[1].Image)
		spoiled[at] ^= 1
		write(spoiled)
		if err := Verify(dir, list[1]); err == nil {
			t.Errorf("a changed byte at %d is not noticed", at)
		}
	}
	if err := Verify(t.TempDir(), list[1]); err == nil {
		t.Error("an absent part is not noticed")
	}
}

func TestWhatIsNoPart(t *testing.T) {
	program := compile(t)
	for name, file := range map[string]string{
		"trust": program, "part-": program, "part-../x": program, "part-" + strings.Repeat("x", 16): program,
		"part-text": "/etc/passwd", "part-absent": "/nonexistent", "part-dynamic": "/bin/sh",
	} {
		if _, err := Build(t.Context(), map[string]string{name: file}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Build of %s as %q = %v", file, name, err)
		}
	}
	for _, name := range []string{"part-trust", "part-.img", "../part-trust.img", "vmlinux"} {
		if IsFile(name) {
			t.Errorf("IsFile(%q)", name)
		}
	}
}
