// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install checks the programs that make install put into place.
package install

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/tests/harness"
)

func TestTheInstalledProgramsTellTheVersionTheyWereBuiltAs(t *testing.T) {
	want := stagedVersion(t)
	coco := filepath.Join(harness.Prefix(), "bin", "coco")
	for _, c := range []struct{ got, want string }{
		{output(t, coco, "version"), "coco " + want},
		{output(t, coco, "--version"), "coco " + want},
		{
			output(t, filepath.Join(harness.Prefix(), "bin", "containerd-shim-coco-v2"), "-v"),
			"containerd-shim-coco-v2 " + want,
		},
	} {
		if c.got != c.want {
			t.Errorf("an installed program says %q, want %q", c.got, c.want)
		}
	}
	var info struct{ Version, Go, Platform string }
	text := output(t, coco, "version", "--json")
	if err := json.Unmarshal([]byte(text), &info); err != nil || info.Version != want || info.Go == "" ||
		info.Platform == "" {
		t.Errorf("coco version --json = %s, %v, want version %q", text, err, want)
	}
}

// stagedVersion is the version that make passed to the linker. Under make test it is in $COCO_VERSION. Elsewhere it is
// that of the tree, if dist/prefix was staged from this very tree; an older one is no reason to fail.
func stagedVersion(t *testing.T) string {
	t.Helper()
	coco := filepath.Join(harness.Prefix(), "bin", "coco")
	_, err := os.Stat(coco)
	if required := os.Getenv("COCO_REQUIRE") == "all"; errors.Is(err, fs.ErrNotExist) && !required {
		t.Skipf("%v; run make stage", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if v := os.Getenv("COCO_VERSION"); v != "" {
		return v
	}
	want := versionOf(t, harness.Root())
	if got := output(t, coco, "version"); got != "coco "+want {
		t.Skipf("%s was built from another tree: it says %q, this one is %q; run make stage", coco, got, want)
	}
	return want
}

func TestTheVersionIsWhatGitSaysOfTheTree(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) string {
		return output(t, "git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com"},
			args...)...)
	}
	check := func(state, want string) {
		t.Helper()
		if got := versionOf(t, dir); got != want {
			t.Errorf("the version of %s is %q, want %q", state, got, want)
		}
	}
	check("a tree without git", "dev")

	file := filepath.Join(dir, "file")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q")
	write("one")
	git("add", "file")
	git("commit", "-q", "-m", "one")
	check("a clone without tags", git("rev-parse", "--short", "HEAD"))
	git("tag", "v0.2.0")
	check("a tagged commit", "v0.2.0")
	write("two")
	check("a changed tree", "v0.2.0-dirty")
	git("commit", "-q", "-a", "-m", "two")
	check("a commit after a tag", "v0.2.0-1-g"+git("rev-parse", "--short", "HEAD"))
}

// versionOf asks the Makefile for the version of the tree in dir.
func versionOf(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", "-s", "--no-print-directory", "-f",
		filepath.Join(harness.Root(), "Makefile"), "print-version")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir), "MAKEFLAGS=", "VERSION=")
	return run(t, cmd)
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), program, args...))
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}
