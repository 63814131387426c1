// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// page is the report, for people.
func page(all, survived []mutant, reasons map[string]string, o options) []byte {
	type row struct{ made, alive int }
	rows := map[string]*row{}
	var kinds []string
	count := func(m mutant) *row {
		kind, _, _ := strings.Cut(m.what, " (")
		if rows[kind] == nil {
			rows[kind] = &row{}
			kinds = append(kinds, kind)
		}
		return rows[kind]
	}
	for _, m := range all {
		count(m).made++
	}
	for _, m := range survived {
		count(m).alive++
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Mutation run of the policy's evaluator

`+"`make mutate`"+` wrote this page on %s. It changes the code of %s
in one place at a time, and runs the tests of %s.
A change for which no test fails has survived.

| change | made | survived |
|---|---|---|
`, time.Now().UTC().Format(time.DateOnly), code(o.code), code(o.tests))
	for _, k := range kinds {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", k, rows[k].made, rows[k].alive)
	}
	fmt.Fprintf(&b, "| all | %d | %d |\n", len(all), len(survived))
	b.WriteString("\n## Changes that survive, with the reason\n\n| place | change | reason |\n|---|---|---|\n")
	for _, m := range survived {
		why := reasons[m.key()]
		if why == "" {
			why = "**none: a test is missing**"
		}
		fmt.Fprintf(&b, "| %s %s | %s: `%s` | %s |\n", m.file, m.in, m.what, strings.ReplaceAll(m.code, "|", `\|`), why)
	}
	return b.Bytes()
}

func code(list []string) string { return "`" + strings.Join(list, "`, `") + "`" }
