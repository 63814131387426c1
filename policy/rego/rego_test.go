// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"errors"
	"strings"
	"testing"
)

func refs(values map[string]any) References {
	return func(name string) (any, bool) { v, ok := values[name]; return v, ok }
}

func TestOnlyTrueAllows(t *testing.T) {
	claims := map[string]any{"submods": map[string]any{"cpu0": map[string]any{"ear.status": "affirming"}}}
	data := map[string]any{"plugin": "resource", "resource-path": []any{"a", "b", "c"}, "query": map[string]any{}}
	for name, tc := range map[string]struct {
		text string
		want bool
	}{
		"true":      {"default allow := false\nallow if input.submods.cpu0[\"ear.status\"] == \"affirming\"", true},
		"path":      {"allow if data[\"resource-path\"][0] == \"a\"", true},
		"plugin":    {"allow if data.plugin == \"other\"", false},
		"undefined": {"allow if input.nothing", false},
		"string":    {"allow := \"true\"", false},
		"number":    {"allow := 1", false},
		"object":    {"allow := {\"allow\": true}", false},
		"error":     {"allow if to_number(\"x\") == 1", false},
		"set":       {"allow contains true", false},
		"conflict":  {"allow := true if input.submods\nallow := false if input.submods", false},
		"endless":   {"allow if count([1 | some i in n; some j in n; i == -j]) == 0\nn := numbers.range(1, 100000)", false},
	} {
		p, err := Compile(t.Context(), Resource, "package policy\nimport rego.v1\n"+tc.text+"\n")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := p.Allow(t.Context(), claims, data)
		if got != tc.want || got && err != nil || errors.Is(err, ErrTimeout) != (name == "endless") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if ok, err := (*Policy)(nil).Allow(t.Context(), claims, data); ok || err == nil {
		t.Error("no policy allows")
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		kind       Kind
		text, want string
	}{
		"no Rego":        {Resource, "package policy\nallow {", "rego_parse_error"},
		"another name":   {Resource, "package policy\nallowed := true", `defines "allowed", which nothing reads`},
		"no rule":        {Attestation, "package policy\nallow := true", `does not define "trust_claims"`},
		"package":        {Resource, "package agent_policy\nallow := true", "package agent_policy"},
		"v0":             {Resource, "package policy\nallow { true }", "rego_parse_error"},
		"network":        {Resource, "package policy\nallow if http.send({\"method\": \"get\"}).body", "http.send"},
		"environment":    {Resource, "package policy\nallow if opa.runtime().env.X == \"1\"", "opa.runtime"},
		"unknown":        {Resource, "package policy\nallow if nothing(1)", "undefined function"},
		"no text":        {Resource, "", "empty module"},
		"longer than it": {Resource, "package policy\nallow := true #" + strings.Repeat("x", maxText), "more than"},
	} {
		if _, err := Compile(t.Context(), tc.kind, tc.text); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestAppraisals(t *testing.T) {
	input := map[string]any{"snp": map[string]any{"measurement": "ab", "debug": false, "svn": 3.0}}
	known := refs(map[string]any{"m": []any{"cd", "ab"}, "svn": 3.0})
	const is2 = "trust_claims := {\"hardware\": 2}"
	for name, tc := range map[string]struct {
		text string
		want map[string]int
	}{
		"values": {
			"trust_claims := {\"executables\": e, \"hardware\": 2}\ndefault e := 33\n" +
				"e := 3 if input.snp.measurement in query_reference_value(\"m\")", map[string]int{"executables": 3, "hardware": 2},
		},
		"scalar":            {is2 + " if input.snp.svn == query_reference_value(\"svn\")", map[string]int{"hardware": 2}},
		"absent is null":    {is2 + " if query_reference_value(\"x\") == null", map[string]int{"hardware": 2}},
		"undefined":         {is2 + " if input.snp.measurement in query_reference_value(\"x\")", nil},
		"no claim":          {"trust_claims := {}", nil},
		"no map":            {"trust_claims := [2]", nil},
		"no number":         {"trust_claims := {\"hardware\": \"2\"}", nil},
		"fraction":          {"trust_claims := {\"hardware\": 2.5}", nil},
		"too large":         {"trust_claims := {\"hardware\": 128}", nil},
		"unknown member":    {"trust_claims := {\"hardwear\": 2}", nil},
		"fails":             {"trust_claims := {\"hardware\": 1 / 0}", nil},
		"extensions failed": {is2 + "\nextensions := 1 if input.snp\nextensions := 2 if input.snp", nil},
	} {
		p, err := Compile(t.Context(), Attestation, "package policy\nimport rego.v1\n"+tc.text+"\n")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a, err := p.Appraise(t.Context(), input, known)
		if (err == nil) != (tc.want != nil) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
		for k, v := range tc.want {
			if a.Vector[k] != v || len(a.Vector) != len(tc.want) {
				t.Errorf("%s: %v, want %v", name, a.Vector, tc.want)
			}
		}
	}
}

func TestLint(t *testing.T) {
	text := "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 2} if {\n" +
		"input.a in query_reference_value(\"list\")\ninput.a in query_reference_value(\"scalar\")\n" +
		"input.a == query_reference_value(\"scalar2\")\ninput.a == query_reference_value(\"list\")\n" +
		"query_reference_value(\"absent\")\n}\n"
	got, err := Lint(Attestation, text, refs(map[string]any{"list": []any{1.0}, "scalar": 1.0, "scalar2": []any{1.0}}))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{`no reference value "absent"`, `"scalar" is no list`, `"scalar2" is a list`} {
		if !strings.Contains(all, want) {
			t.Errorf("%s lacks %s", all, want)
		}
	}
}
