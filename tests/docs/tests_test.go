// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/tests/harness"
)

// audit is the page that names for each line of an audit the tests that hold it, and their directories.
const audit = "docs/decisions/boundaries.md"

var (
	declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
	quoted   = regexp.MustCompile(`"(Test[A-Z]\w*)"`)
	aTest    = regexp.MustCompile(`^(?:Test|Fuzz)[A-Z]\w*…?$`)
)

// repositorysTests returns the directories of each test, and the names of foreign suites' tests that ours name.
func repositorysTests(t *testing.T) (dirs map[string][]string, foreign map[string]bool) {
	t.Helper()
	dirs, foreign = map[string][]string{}, map[string]bool{}
	for _, file := range files(t, ".go") {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		text := read(t, file)
		for _, m := range declared.FindAllStringSubmatch(text, -1) {
			dirs[m[1]] = append(dirs[m[1]], filepath.Dir(file))
		}
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			foreign[m[1]] = true
		}
	}
	return dirs, foreign
}

func TestTheTestsThatPagesNameAreThere(t *testing.T) {
	dirs, foreign := repositorysTests(t)
	known := slices.AppendSeq(slices.Collect(maps.Keys(dirs)), maps.Keys(foreign))
	for _, page := range files(t, ".md") {
		if strings.HasPrefix(page, "docs/conformance/") { // the tests of others
			continue
		}
		for _, name := range code.FindAllString(strings.Join(prose(read(t, page)), "\n"), -1) {
			name = strings.Trim(name, "`")
			begin, open := strings.CutSuffix(name, "…")
			if aTest.MatchString(name) && !slices.ContainsFunc(known, func(k string) bool {
				return k == begin || open && strings.HasPrefix(k, begin)
			}) {
				t.Errorf("%s names the test %s, which is nowhere", page, name)
			}
		}
	}
}

// In the audit a directory stands before its tests.
func TestTheAuditNamesTestsAndTheirDirectories(t *testing.T) {
	dirs, _ := repositorysTests(t)
	rows := 0
	for _, line := range prose(read(t, audit)) {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "| ") || !strings.Contains(line, "`Test") {
			continue
		}
		rows++
		dir := ""
		for _, span := range code.FindAllString(cells[len(cells)-1], -1) {
			span = strings.Trim(span, "`")
			if !aTest.MatchString(span) {
				dir = span
				if info, err := os.Stat(filepath.Join(harness.Root(), dir)); err != nil || !info.IsDir() {
					t.Errorf("%s: %s is no directory", audit, dir)
				}
			} else if !slices.Contains(dirs[span], dir) {
				t.Errorf("%s: %s is not in %q, but in %q", audit, span, dir, dirs[span])
			}
		}
	}
	if rows < 50 {
		t.Errorf("%s has %d rows that name tests", audit, rows)
	}
}
