// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"fmt"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Shapes of reference values, by how a policy uses them.
const (
	anyShape = iota
	listShape
	scalarShape
)

// Lint returns what is suspicious in a policy that compiles: reference values that are not there, and those whose shape
// is not the one that the policy compares with. Each would let the policy refuse everything without a word.
func Lint(kind Kind, text string, refs References) ([]string, error) {
	m, err := parse(text)
	if err != nil {
		return nil, err
	}
	uses := map[string]int{}
	ast.WalkNodes(m, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Expr:
			if terms, ok := n.Terms.([]*ast.Term); ok {
				use(uses, terms)
			}
		case *ast.Term:
			if call, ok := n.Value.(ast.Call); ok {
				use(uses, call)
			}
		}
		return false
	})
	var out []string
	if kind == Resource && len(uses) > 0 {
		out = append(out, "a resource policy cannot ask for reference values: "+queryReference+" is null there")
	}
	for _, name := range slices.Sorted(maps.Keys(uses)) {
		v, ok := refs(name)
		_, isList := v.([]any)
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("there is no reference value %q", name))
		case uses[name] == listShape && !isList:
			out = append(out, fmt.Sprintf("reference value %q is no list, and the policy looks for a member of it", name))
		case uses[name] == scalarShape && isList:
			out = append(out, fmt.Sprintf("reference value %q is a list, and the policy compares it with ==", name))
		}
	}
	return out, nil
}

// use notes the names of reference values in a call, with the shape that the call expects.
func use(uses map[string]int, call []*ast.Term) {
	if len(call) == 0 {
		return
	}
	op := call[0].String()
	if name, ok := queried(call); ok {
		uses[name] = max(uses[name], anyShape)
	}
	for i, t := range call[1:] {
		inner, ok := t.Value.(ast.Call)
		if !ok {
			continue
		}
		name, ok := queried(inner)
		switch {
		case ok && op == ast.Member.Name && i == 1:
			uses[name] = listShape
		case ok && (op == ast.Equal.Name || op == ast.Equality.Name):
			uses[name] = scalarShape
		}
	}
}

// queried returns the name that a call of query_reference_value asks for, if it is a constant.
func queried(call []*ast.Term) (string, bool) {
	if len(call) < 2 || call[0].String() != queryReference {
		return "", false
	}
	name, ok := call[1].Value.(ast.String)
	return string(name), ok
}
