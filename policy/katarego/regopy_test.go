// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
)

// regopyInput is the input of the random policies.
const regopyInput = `{"s": "abc", "n": 2, "flag": true, "args": ["a", "KEY=value", "/run/x"], "mounts": [
	{"destination": "/a", "type": "bind"}, {"destination": "/b/c", "options": ["ro"]}]}`

// regopy is a process of testdata/evaluate.py.
type regopy struct {
	in  *json.Encoder
	out *bufio.Scanner
}

func startRegopy(t *testing.T, python string) *regopy {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), python, "testdata/evaluate.py") // ends when its input does
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", python, err)
		}
	})
	s := bufio.NewScanner(out)
	s.Buffer(nil, 4<<20)
	return &regopy{json.NewEncoder(in), s}
}

// answers are the values of rules; a rule without one is not there. Late and Broken are rules that regopy did not
// finish, or answered with no JSON.
type answers struct {
	Values       map[string]any `json:"values"`
	Late, Broken []string
	Error        string `json:"-"`
}

func (r *regopy) ask(t *testing.T, policy string, input any, rules []string) (a answers) {
	t.Helper()
	if err := r.in.Encode(map[string]any{"policy": policy, "input": input, "rules": rules}); err != nil {
		t.Fatal(err)
	}
	if !r.out.Scan() {
		t.Fatalf("regopy ended: %v; at the policy\n%s", r.out.Err(), policy)
	}
	if err := json.Unmarshal(r.out.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// answered are the answers of this package.
func answered(t *testing.T, text string, input any, rules []string) (a answers) {
	t.Helper()
	p, err := Compile(t.Context(), text)
	if err != nil {
		return answers{Error: err.Error()}
	}
	value, err := ast.InterfaceToValue(input)
	if err != nil {
		t.Fatal(err)
	}
	a.Values = map[string]any{}
	for _, rule := range rules {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		v, _, err := p.eval(ctx, rule, value)
		cancel()
		if err != nil {
			a.Error = err.Error()
			return a
		}
		if v == nil {
			continue
		}
		plain, err := ast.JSON(v.Value)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(plain)
		if err == nil {
			err = json.Unmarshal(b, &plain)
		}
		if err != nil {
			t.Fatal(err)
		}
		a.Values[rule] = plain
	}
	return a
}

// TestRegopyAgrees compares random policies with regopy, another implementation of Rego in another language (make
// rego-regopy). COCO_REGOPY is a Python that has it.
func TestRegopyAgrees(t *testing.T) {
	python := os.Getenv("COCO_REGOPY")
	if python == "" {
		t.Skip("COCO_REGOPY names no Python with regopy: make rego-regopy")
	}
	count, err := strconv.Atoi(os.Getenv("COCO_REGOPY_POLICIES"))
	if err != nil {
		count = 1000
	}
	other := startRegopy(t, python)
	var input any
	if err := json.Unmarshal([]byte(regopyInput), &input); err != nil {
		t.Fatal(err)
	}
	r := tally{called: map[string]int{}}
	for i := range count {
		w := &writer{Rand: rand.New(rand.NewPCG(1, uint64(i))), called: map[string]bool{}}
		text, rules := w.policy()
		got := answered(t, text, input, rules)
		if got.Values == nil { // OPA checks types when it compiles, and regopy does not
			r.refused++
			continue
		}
		r.policies++
		r.compare(text, rules, got, other.ask(t, text, input, rules))
		for name := range w.called {
			r.called[name]++
		}
	}
	t.Logf("%d policies, %d refused; rules: %d the same, %d late, %d broken; %d differ:\n%s", r.policies, r.refused,
		r.same, r.late, r.broken, len(r.differ), strings.Join(r.differ, ""))
	if most := r.same / 50; len(r.differ) > most || r.same < count {
		t.Errorf("%d rules have another value with regopy, more than %d, and %d the same", len(r.differ), most, r.same)
	}
	if file := os.Getenv("COCO_REGOPY_REPORT"); file != "" {
		if err := os.WriteFile(file, []byte(r.page()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tally is what a run found.
type tally struct {
	policies, refused, same, late, broken int

	differ []string // rows of the report
	called map[string]int
}

func (r *tally) compare(text string, rules []string, got, want answers) {
	r.late, r.broken = r.late+len(want.Late), r.broken+len(want.Broken)
	for _, rule := range rules {
		if slices.Contains(want.Late, rule) || slices.Contains(want.Broken, rule) {
			continue
		}
		w, ok := want.Values[rule]
		g, have := got.Values[rule]
		if ok == have && cmp.Equal(unordered(w), unordered(g)) {
			r.same++
			continue
		}
		var lines []string
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, rule+" ") {
				lines = append(lines, "`"+strings.ReplaceAll(line, "|", "\\|")+"`")
			}
		}
		row := fmt.Sprintf("| %s | %s | %s |\n", strings.Join(lines, "<br>"), shown(w, ok), shown(g, have))
		r.differ = append(r.differ, row)
	}
}

func shown(v any, there bool) string {
	b, err := json.Marshal(v)
	if !there || err != nil {
		return "undefined"
	}
	return "`" + string(b) + "`"
}

// unordered sorts the lists of a value: sets become lists in JSON, and regopy has another order of texts.
func unordered(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = unordered(v[i])
		}
		slices.SortFunc(out, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		return out
	case map[string]any:
		out := map[string]any{}
		for k := range v {
			out[k] = unordered(v[k])
		}
		return out
	}
	return v
}

func (r *tally) page() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(r.called)) {
		list = append(list, fmt.Sprintf("`%s` %d", name, r.called[name]))
	}
	rules := r.same + len(r.differ) + r.late + r.broken
	return fmt.Sprintf(pageText, r.policies, rules, r.same, len(r.differ), r.late, r.broken, r.refused,
		strings.Join(list, ",\n"), strings.Join(r.differ, ""))
}

const pageText = `# coco-rego beside regopy

` + "`make rego-regopy`" + ` makes random policies, evaluates them with the package of coco-rego (OPA's evaluator) and with
regopy 1.5.2 (rego-cpp, another implementation in another language), and compares the value of each rule.
Sets are lists in both results, so the order of lists is not compared.

%d policies with %d rules: %d have the same value, %d another one, %d took regopy more than 5 s, and %d it answered
with an error of its own. OPA's compiler refused %d policies more, for types that can never fit.

Functions, and the number of policies that call each:
%s

Left out are forms that regopy was seen to answer otherwise in nearly every case: see ` + "`policy/katarego/random_test.go`" + `.

| rule | regopy | coco-rego |
|---|---|---|
%s`
