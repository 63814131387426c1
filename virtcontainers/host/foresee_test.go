// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/foresee"
)

// TestTheAnswerOfCoco: a stand-in for the program coco keeps the question and answers.
func TestTheAnswerOfCoco(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	j := judge{filepath.Join(dir, "containerd-shim-coco-v2")}
	program := func(answer string, code int) {
		t.Helper()
		script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >%[1]s\ncat >>%[1]s\nprintf %%s '%s'\nexit %d\n", asked, answer, code)
		if err := os.WriteFile(filepath.Join(dir, "coco"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ask := func() error {
		return j.Foresee(t.Context(), "the policy", &agent.CreateSandboxRequest{SandboxId: "a"},
			&agent.CreateContainerRequest{ContainerId: "b"})
	}
	if err := ask(); err == nil || errdefs.IsPermissionDenied(err) {
		t.Errorf("without the program: %v", err)
	}
	program("", 0)
	if err := ask(); err != nil {
		t.Error(err)
	}
	const want = "denied [value] web/OCI.Process.Cwd: expected …, got …"
	program(want, 0)
	if err := ask(); !errdefs.IsPermissionDenied(err) || err.Error() != want {
		t.Errorf("a denial: %v", err)
	}
	text, err := os.ReadFile(asked)
	if err != nil || !strings.HasPrefix(string(text), strings.Join(foresee.Args, " ")+"\n{") ||
		!strings.Contains(string(text), `"policy":"the policy"`) || !strings.Contains(string(text), `"container":`) {
		t.Errorf("the question was %s, %v", text, err)
	}
	program("denied", 1)
	if err := ask(); err == nil || errdefs.IsPermissionDenied(err) {
		t.Errorf("a program that fails: %v", err)
	}
}
