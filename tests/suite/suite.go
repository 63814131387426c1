// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package suite reads what a foreign test suite says under runc and under coco, compares the two test by test, and
// writes the comparison as a page of docs/conformance.
package suite

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/tests/harness"
)

// Test is how one test ended.
type Test struct {
	State   string  // "passed", "failed" or "skipped"
	Seconds float64 // that it took
	Output  string  // its last lines, if it did not pass
}

// Result is what a suite that was run with -test.v said.
type Result struct {
	Tests map[string]Test
	Tail  string // the last of all output
}

var (
	resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)(?: \(([0-9.]+)s\))?`)
	states     = map[string]string{"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}
)

// Parse reads the output of a suite. Only top-level tests count.
func Parse(text string) Result {
	const lines, tail = 60, 3000
	r := Result{Tests: map[string]Test{}}
	var block []string
	for l := range strings.Lines(text) { // of any length: tests print megabytes in one line
		l = strings.TrimRight(l, "\r\n")
		if strings.HasPrefix(l, "=== RUN") && !strings.Contains(l, "/") {
			block = nil
		}
		block = append(block, l)
		m := resultLine.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		seconds, _ := strconv.ParseFloat(m[3], 64) // a line without a time is a test of 0 s
		t := Test{State: states[m[1]], Seconds: seconds}
		if t.State != "passed" {
			t.Output = strings.Join(block[max(0, len(block)-lines):], "\n")
		}
		r.Tests[m[2]] = t
	}
	r.Tail = text[max(0, len(text)-tail):]
	return r
}

// Passed returns the tests that passed, sorted.
func (r Result) Passed() []string {
	var out []string
	for n, t := range r.Tests {
		if t.State == "passed" {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// Compare returns a sentence for each test that passes under runc only and has no reason in exceptions, and for each
// that has a reason and passes.
func Compare(runc, coco Result, exceptions map[string]string) []string {
	var wrong []string
	for _, name := range runc.Passed() {
		passed, reason := coco.Tests[name].State == "passed", exceptions[name]
		switch {
		case passed && reason != "":
			wrong = append(wrong, name+" passes now: take it off the exceptions")
		case !passed && reason == "":
			wrong = append(wrong, fmt.Sprintf("%s passes under runc and not under coco:\n%s", name, coco.Tests[name].Output))
		}
	}
	return wrong
}

// Intro is the first paragraph of a page that command made; what names the tests. It has the commit of this repository.
func Intro(command, what string) string {
	commit := "unknown"
	git := exec.Command("git", "rev-parse", "--short", "HEAD")
	git.Dir = harness.Root()
	if out, err := git.Output(); err == nil {
		commit = strings.TrimSpace(string(out))
	}
	return fmt.Sprintf("%s; coco at commit %s. Made by `%s`; do not edit.", what, commit, command)
}

// Page is the comparison as a page, with intro below its title. leftOut is the pattern of the tests that were not run.
func Page(title, intro, leftOut string, runc, coco Result, exceptions map[string]string) string {
	names := map[string]bool{}
	var runcOnly int
	for _, r := range []Result{runc, coco} {
		for n := range r.Tests {
			names[n] = true
		}
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	for _, n := range runc.Passed() {
		if coco.Tests[n].State != "passed" {
			runcOnly++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n\n", title, intro)
	b.WriteString("| tests | runc passed | coco passed | passed under runc only |\n|---|---|---|---|\n")
	fmt.Fprintf(&b, "| %d | %d | %d | %d |\n\n", len(sorted), len(runc.Passed()), len(coco.Passed()), runcOnly)
	fmt.Fprintf(&b, "Not run under either: `%s`.\n\n", leftOut)
	b.WriteString("| test | runc | s | coco | s | why it fails under coco |\n|---|---|---|---|---|---|\n")
	for _, n := range sorted {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", n, cell(runc.Tests[n])+" | "+cell(coco.Tests[n]), exceptions[n])
	}
	return b.String()
}

// cell is a test's end and time, for two cells of a table.
func cell(t Test) string {
	if t.State == "" {
		return "– | –"
	}
	return fmt.Sprintf("%s | %.0f", t.State, t.Seconds)
}
