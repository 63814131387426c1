// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"slices"
	"strings"
	"testing"
)

const (
	underRunc = "=== RUN   TestA\n--- PASS: TestA (1.20s)\n=== RUN   TestB\n    b_test.go:1: x\n=== RUN   TestB/sub\n" +
		"    --- PASS: TestB/sub (0.00s)\n--- PASS: TestB (2.60s)\n--- PASS: TestC (0.00s)\n--- SKIP: TestD (0.00s)\n"
	underCoco = "=== RUN   TestA\n--- PASS: TestA (9.00s)\n=== RUN   TestB\n    b_test.go:1: the reason\n" +
		"--- FAIL: TestB (3.00s)\n--- PASS: TestC (0.00s)\nFAIL\n"
)

// TestALongLine: a test that prints a line of megabytes takes no later test out of the comparison.
func TestALongLine(t *testing.T) {
	r := Parse("--- PASS: TestA (0.00s)\n" + strings.Repeat("x", 2<<20) + "\n--- PASS: TestB (0.00s)\n")
	if got := r.Passed(); !slices.Equal(got, []string{"TestA", "TestB"}) {
		t.Errorf("passed are %q", got)
	}
}

func TestEachTestThatPassesUnderRuncOnlyIsNamed(t *testing.T) {
	runc, coco := Parse(underRunc), Parse(underCoco)
	if got := runc.Passed(); !slices.Equal(got, []string{"TestA", "TestB", "TestC"}) {
		t.Errorf("runc passes %q", got)
	}
	if got := runc.Tests["TestB"]; got != (Test{State: "passed", Seconds: 2.6}) {
		t.Errorf("TestB under runc = %+v", got)
	}
	wrong := Compare(runc, coco, nil)
	if len(wrong) != 1 || !strings.HasPrefix(wrong[0], "TestB passes under runc and not under coco:\n") ||
		!strings.Contains(wrong[0], "the reason") {
		t.Errorf("without exceptions: %q", wrong)
	}
	if wrong := Compare(runc, coco, map[string]string{"TestB": "why"}); len(wrong) != 0 {
		t.Errorf("with the exception: %q", wrong)
	}
	wrong = Compare(runc, coco, map[string]string{"TestB": "why", "TestC": "why not"})
	if len(wrong) != 1 || wrong[0] != "TestC passes now: take it off the exceptions" {
		t.Errorf("with an exception that passes: %q", wrong)
	}
	// A test that the suite did not come to has not passed.
	if wrong := Compare(runc, Parse(""), nil); len(wrong) != 3 {
		t.Errorf("nothing ran under coco: %q", wrong)
	}
}

func TestAPageHasEveryTest(t *testing.T) {
	got := Page("T", "Made by hand.", "X|Y", Parse(underRunc), Parse(underCoco), map[string]string{"TestB": "why"})
	const want = "# T\n\nMade by hand.\n\n| tests | runc passed | coco passed | passed under runc only |\n" +
		"|---|---|---|---|\n| 4 | 3 | 2 | 1 |\n\nNot run under either: `X|Y`.\n\n" +
		"| test | runc | s | coco | s | why it fails under coco |\n|---|---|---|---|---|---|\n" +
		"| TestA | passed | 1 | passed | 9 |  |\n| TestB | passed | 3 | failed | 3 | why |\n" +
		"| TestC | passed | 0 | passed | 0 |  |\n| TestD | skipped | 0 | – | – |  |\n"
	if got != want {
		t.Errorf("Page() =\n%s\nwant\n%s", got, want)
	}
}
