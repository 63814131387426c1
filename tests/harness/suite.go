// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bufio"
	"regexp"
	"slices"
	"strings"
)

// SuiteResult is what a foreign test suite, run with -test.v, said.
type SuiteResult struct {
	Passed map[string]bool
	Output map[string]string // the last lines of tests that did not pass
	Tail   string            // the last of all output
}

var resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)`)

// ParseSuite reads the output of a suite. Only top-level tests count.
func ParseSuite(text string) SuiteResult {
	const lines, tail = 60, 3000
	r := SuiteResult{Passed: map[string]bool{}, Output: map[string]string{}}
	var block []string
	sc := bufio.NewScanner(strings.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		l := sc.Text()
		if strings.HasPrefix(l, "=== RUN") && !strings.Contains(l, "/") {
			block = nil
		}
		block = append(block, l)
		m := resultLine.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		if m[1] == "PASS" {
			r.Passed[m[2]] = true
		} else {
			r.Output[m[2]] = strings.Join(block[max(0, len(block)-lines):], "\n")
		}
	}
	r.Tail = text[max(0, len(text)-tail):]
	return r
}

// Names returns the tests that passed, sorted.
func (r SuiteResult) Names() []string {
	var out []string
	for n := range r.Passed {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}
