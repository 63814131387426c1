// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// TestEachKindOfMutant: the places of a function, and that what comes out is Go.
func TestEachKindOfMutant(t *testing.T) {
	const src = `package p

func (d *T) f(a, b int, s string) bool {
	for _, x := range []int{a, b} {
		if a < x && (s != "" || b == 1) {
			d.Add(x)
		}
	}
	switch {
	case a == b:
		d.n = 1
	}
	d.mu.Lock()
	return has(s)
}
`
	out, list, err := instrument("p.go", []byte(src), 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.ParseFile(token.NewFileSet(), "p.go", out, 0); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	got := map[string]int{}
	for i, m := range list {
		if m.id != 11+i || m.in != "T.f" || !strings.Contains(string(out), probe+"(") {
			t.Errorf("mutant %+v", m)
		}
		got[m.what+" "+m.code]++
	}
	for _, want := range []string{
		"leaves out the entry a", "leaves out the entry b", "never takes the branch a < x && (s != \"\" || b == 1)",
		"drops the operand a < x", "drops the operand (s != \"\" || b == 1)", "negates a < x",
		"decides otherwise for equals a < x", "drops the operand s != \"\"", "drops the operand b == 1", "negates s != \"\"",
		"negates b == 1", "leaves out the statement d.Add(x)", "never takes the branch a == b", "negates a == b",
		"leaves out the statement d.n = 1", "negates the result has(s)",
	} {
		if got[want] != 1 {
			t.Errorf("%q comes %d times", want, got[want])
		}
		delete(got, want)
	}
	if len(got) > 0 {
		t.Errorf("not expected: %v", got)
	}
}

// TestReasonsAreForSurvivors: a mutant without a reason is an error, and so is a reason without a mutant.
func TestReasonsAreForSurvivors(t *testing.T) {
	m := mutant{file: "p.go", in: "f", what: "negates", code: "a == b"}
	for _, tc := range []struct {
		survived []mutant
		reasons  map[string]string
		fails    bool
	}{
		{nil, nil, false},
		{[]mutant{m}, map[string]string{m.key(): "why"}, false},
		{[]mutant{m}, nil, true},
		{nil, map[string]string{m.key(): "why"}, true},
	} {
		if err := verdict([]mutant{m}, tc.survived, tc.reasons); (err != nil) != tc.fails {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if _, err := readReasons("reasons.txt"); err != nil {
		t.Error(err)
	}
}
