// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deptest holds the project's structure in tests: which of our packages may import
// which, what a binary must never link, and how many bytes it may weigh. Raising a limit is a
// visible change to a test.
package deptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Module is the path of our module.
const Module = "github.com/coco-shim/coco"

// Package is what `go list` says of one package.
type Package struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// List runs `go list -json` with the tags of the release build.
func List(t *testing.T, patterns ...string) []Package {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go",
		append([]string{"list", "-tags", "no_grpc", "-json=ImportPath,Imports,Deps"}, patterns...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v: %s", strings.Join(patterns, " "), err, stderr.String())
	}
	var pkgs []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// Deny fails the test if the main package links any of the denied packages, which are keys; values say why not.
func Deny(t *testing.T, main string, denied map[string]string) {
	t.Helper()
	for _, p := range List(t, main) {
		linked := map[string]bool{}
		for _, d := range p.Deps {
			linked[d] = true
		}
		for d, why := range denied {
			if linked[d] {
				t.Errorf("%s links %s: %s; find the import with: go mod why -m, go list -deps", p.ImportPath, d, why)
			}
		}
	}
}

// MaxSize builds the main package as the Makefile does and fails if the stripped binary is larger than
// limit bytes.
func MaxSize(t *testing.T, main string, limit int64) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "binary")
	flags := buildFlags(t)
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build"}, flags...), "-ldflags", "-s -w",
		"-o", out, main)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", main, err, b)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %.2f MB", main, float64(info.Size())/1e6)
	if info.Size() > limit {
		t.Errorf("%s weighs %d bytes, its budget is %d", main, info.Size(), limit)
	}
}

// buildFlags asks the Makefile how binaries are built.
func buildFlags(t *testing.T) []string {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("find the module's directory: %v", err)
	}
	flags, err := exec.CommandContext(t.Context(), "make", "-s", "-C", strings.TrimSpace(string(root)),
		"print-build-flags").Output()
	if err != nil {
		t.Fatalf("make print-build-flags: %v", err)
	}
	return strings.Fields(string(flags))
}

// Edges maps one of our packages (or a tree of them, ending in /...) to what it may import of ours.
// The package's own key counts, else the longest matching tree. "*" allows everything.
type Edges map[string][]string

// Check fails the test for every import of ours that the edges do not allow. internal/* and a
// package's own subpackages' parents are not implied: every allowed edge is listed.
func (e Edges) Check(t *testing.T, pkgs []Package) {
	t.Helper()
	for _, p := range pkgs {
		from := strings.TrimPrefix(p.ImportPath, Module+"/")
		key, allowed := e.lookup(from)
		if key == "" {
			t.Errorf("package %s has no place in the table of import edges", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, Module+"/")
			if ours && !allows(allowed, to) {
				t.Errorf("%s must not import %s (the edges of %s allow %v)", from, to, key, allowed)
			}
		}
	}
}

func (e Edges) lookup(pkg string) (key string, allowed []string) {
	if own, ok := e[pkg]; ok {
		return pkg, own
	}
	for k, v := range e {
		if match(k, pkg) && len(k) > len(key) {
			key, allowed = k, v
		}
	}
	return key, allowed
}

func allows(allowed []string, pkg string) bool {
	for _, a := range allowed {
		if a == "*" || match(a, pkg) {
			return true
		}
	}
	return false
}

// match tells whether pkg is pattern or, for "tree/...", lies in that tree.
func match(pattern, pkg string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == tree || strings.HasPrefix(pkg, tree+"/")
	}
	return pattern == pkg
}

// String renders a table row for messages.
func (p Package) String() string { return fmt.Sprintf("%s → %v", p.ImportPath, p.Imports) }
