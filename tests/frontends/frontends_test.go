// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/testvm"
)

// TestThePageIsMadeOfTheResults compares the committed page with the list and the committed results.
func TestThePageIsMadeOfTheResults(t *testing.T) {
	docs := filepath.Join(testvm.RepoRoot(), "docs")
	all, err := ReadAll(filepath.Join(docs, "frontends"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if err := r.check(); err != nil {
			t.Error(err)
		}
	}
	path, want := filepath.Join(docs, "frontends.md"), Page(all...)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("docs/frontends.md is not made of the results; UPDATE_GOLDEN=1 go test ./tests/frontends (-want +got):\n%s",
			d)
	}
}

// TestTheList holds that a difference names reason and way out, and that each engine has what the issue asks for.
func TestTheList(t *testing.T) {
	names, n := map[string]bool{}, map[string]int{}
	for _, a := range Actions() {
		if names[a.Name] {
			t.Errorf("%s is there twice", a.Name)
		}
		names[a.Name] = true
		for _, engine := range []string{Docker, Podman} {
			if a.For(engine) {
				n[engine]++
			}
		}
		switch d := a.Differ; {
		case d == nil:
		case d.Outcome != Refused && d.Outcome != Differs:
			t.Errorf("%s: outcome %q", a.Name, d.Outcome)
		case d.What == "" || d.WayOut == "" || (d.Words == "") != (d.Outcome == Differs):
			t.Errorf("%s: a difference without reason, way out or words of the refusal: %+v", a.Name, *d)
		}
	}
	for engine, n := range n {
		if n < 80 {
			t.Errorf("%d actions for %s, fewer than 80", n, engine)
		}
	}
}

func TestJudge(t *testing.T) {
	ok := result{out: "x\n"}
	refusal := Action{Differ: &Difference{Outcome: Refused, Words: "no, container"}}
	no := "docker: Error response from daemon: no, container " + strings.Repeat("0f", 32) + ".\nSee help"
	for _, tc := range []struct {
		name   string
		action Action
		coco   result
		want   Result
	}{
		{"the same, whatever is on stderr", refusal, result{out: "x\n", errs: "warning"}, Result{Outcome: Same}},
		{"the refusal", refusal, result{code: 125, errs: no}, Result{Outcome: Refused, Error: "no, container …."}},
		{"another error", refusal, result{code: 125, errs: "cat: no such file"}, Result{Outcome: Differs}},
		{"a refusal that the list does not have", Action{}, result{code: 125, errs: no}, Result{Outcome: Differs}},
		{"words without effect on the exit status", refusal, result{errs: no}, Result{Outcome: Differs}},
		{"other output", Action{}, result{out: "y\n"}, Result{Outcome: Differs}},
	} {
		if got := tc.action.judge(tc.action.want(Docker), ok, tc.coco); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// TestScripts runs the words of scripts against an engine that repeats its arguments.
func TestScripts(t *testing.T) {
	s := Side{Command: []string{"echo"}, Runtime: "--runtime x", Network: "--network none", Image: "im"}
	r, err := s.do(t.Context(), `once $I a; new one $I b; e ps "a b"; $E $D; wait_for test -d /; exit 3`, "D=/d")
	if err != nil || r.out != "run --rm --runtime x --network none im a\nps a b\n/d\n" || r.code != 3 {
		t.Errorf("do = %+v, %v", r, err)
	}
}
