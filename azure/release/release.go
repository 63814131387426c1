// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package release reads, judges and makes release policies: the conditions under which Azure Key Vault and Managed HSM
// give a key to a VM (secure key release).
//
// A policy lists authorities, which are attestation services, each with conditions on the claims of its tokens. Parse
// refuses all that is not in the documented grammar. Evaluate says for each condition whether it holds, and by which
// claim; the claims come from a token, or are those that a predicted launch will have (Predicted), of which some are
// not known beforehand. Lint lists the faults that make a policy weak or useless. Generate makes a
// policy of predicted launches.
//
// The grammar: Microsoft, "Azure Key Vault secure key release policy grammar". Where it leaves a question open, the
// stricter answer is taken here; docs/azure.md lists them. The package reads no file, network or clock.
package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Bounds of a policy.
const (
	MaxPolicy     = 256 << 10
	maxDepth      = 16
	maxConditions = 4096
)

// Version is the only version of the grammar.
const Version = "1.0.0"

// Operator compares a claim with a value.
type Operator string

// Operators of the grammar.
const (
	Equals          Operator = "equals"
	NotEquals       Operator = "notEquals"
	Less            Operator = "less"
	LessOrEquals    Operator = "lessOrEquals"
	Greater         Operator = "greater"
	GreaterOrEquals Operator = "greaterOrEquals"
	Exists          Operator = "exists"
)

var operators = []Operator{Equals, NotEquals, Less, LessOrEquals, Greater, GreaterOrEquals, Exists}

// Policy is a release policy. One of its authorities must be satisfied.
type Policy struct {
	Authorities []Authority
}

// Authority is an attestation service with the conditions on its tokens.
type Authority struct {
	URL string
	// Need is a list: anyOf or allOf.
	Need Condition
}

// Condition is a list of conditions, or a comparison of one claim. One of Any, All and Claim is set.
type Condition struct {
	Any, All []Condition
	Claim    string // with dots between the names of nested objects
	Operator Operator
	Value    any // string, json.Number or bool
}

// Parse reads a policy. It refuses members, operators and values that are not in the grammar, and members that stand
// twice.
func Parse(b []byte) (*Policy, error) {
	if len(b) > MaxPolicy {
		return nil, fmt.Errorf("the policy has more than %d bytes", MaxPolicy)
	}
	top, err := decode(b)
	if err != nil {
		return nil, err
	}
	members, err := membersOf("the policy", top, "version", "anyOf")
	if err != nil {
		return nil, err
	}
	if v, ok := members["version"].(string); !ok || v != Version {
		return nil, fmt.Errorf("version is %s, and %q is the only one", text(members["version"]), Version)
	}
	list, ok := members["anyOf"].([]any)
	if !ok || len(list) == 0 {
		return nil, errors.New("anyOf is not a list of authorities")
	}
	var p Policy
	n := &counter{}
	for i, v := range list {
		a, err := n.authority(fmt.Sprintf("anyOf[%d]", i), v)
		if err != nil {
			return nil, err
		}
		p.Authorities = append(p.Authorities, a)
	}
	return &p, nil
}

// counter bounds the number of conditions.
type counter struct{ n int }

func (c *counter) authority(path string, v any) (Authority, error) {
	members, err := membersOf(path, v, "authority", "anyOf", "allOf")
	if err != nil {
		return Authority{}, err
	}
	url, ok := members["authority"].(string)
	if !ok || url == "" {
		return Authority{}, fmt.Errorf("%s: authority is not the URL of an attestation service", path)
	}
	delete(members, "authority")
	if len(members) != 1 {
		return Authority{}, fmt.Errorf("%s: an authority has either anyOf or allOf", path)
	}
	need, err := c.condition(path, members, 1)
	return Authority{URL: url, Need: need}, err
}

// condition reads a list of conditions or a comparison.
func (c *counter) condition(path string, v any, depth int) (Condition, error) {
	if c.n++; c.n > maxConditions || depth > maxDepth {
		return Condition{}, fmt.Errorf("%s: more than %d conditions or %d levels", path, maxConditions, maxDepth)
	}
	known := []string{"anyOf", "allOf", "claim"}
	for _, o := range operators {
		known = append(known, string(o))
	}
	members, err := membersOf(path, v, known...)
	if err != nil {
		return Condition{}, err
	}
	for _, kind := range []string{"anyOf", "allOf"} {
		list, ok := members[kind]
		if !ok {
			continue
		}
		if len(members) != 1 {
			return Condition{}, fmt.Errorf("%s: %s stands beside other members", path, kind)
		}
		conditions, err := c.list(path+"."+kind, list, depth)
		if kind == "anyOf" {
			return Condition{Any: conditions}, err
		}
		return Condition{All: conditions}, err
	}
	return comparison(path, members)
}

func (c *counter) list(path string, v any, depth int) ([]Condition, error) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, fmt.Errorf("%s is not a list of conditions", path)
	}
	var out []Condition
	for i, v := range list {
		n, err := c.condition(fmt.Sprintf("%s[%d]", path, i), v, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

func comparison(path string, members map[string]any) (Condition, error) {
	claim, ok := members["claim"].(string)
	if !ok || claim == "" || slices.Contains(strings.Split(claim, "."), "") {
		return Condition{}, fmt.Errorf("%s: claim is not the name of a claim", path)
	}
	delete(members, "claim")
	if len(members) != 1 {
		return Condition{}, fmt.Errorf("%s: claim %s needs one operator, and has %d", path, claim, len(members))
	}
	for name, value := range members {
		c := Condition{Claim: claim, Operator: Operator(name), Value: value}
		return c, c.check(path)
	}
	return Condition{}, nil // not reached: members has one
}

// check compares the type of the value with the operator.
func (c Condition) check(path string) error {
	var ok bool
	want := "a string, a number, true or false"
	switch v := c.Value.(type) {
	case string, bool:
		ok = true
	case json.Number:
		if _, ok = rational(v.String()); !ok {
			want = "a number of at most 30 digits without exponent"
		}
	}
	switch c.Operator {
	case Less, LessOrEquals, Greater, GreaterOrEquals:
		_, ok = rational(text(c.Value))
		want = "a number"
	case Exists:
		_, ok = truth(c.Value)
		want = "true or false"
	}
	if !ok {
		return fmt.Errorf("%s: %s of claim %s is %s, and not %s", path, c.Operator, c.Claim, text(c.Value), want)
	}
	return nil
}

// membersOf returns the members of an object, of which only the named ones are known. anyof and allof are other
// spellings: Microsoft's page has both.
func membersOf(path string, v any, known ...string) (map[string]any, error) {
	object, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s is not an object", path)
	}
	out := map[string]any{}
	for name, v := range object {
		switch name {
		case "anyof":
			name = "anyOf"
		case "allof":
			name = "allOf"
		}
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("%s has the member %.60q; known are %s", path, name, strings.Join(known, ", "))
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%s has the member %s twice", path, name)
		}
		out[name] = v
	}
	return out, nil
}

// decode reads one JSON value. A member that stands twice is refused: two readers could see two policies.
func decode(b []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	v, err := value(dec, 0)
	if err != nil {
		return nil, fmt.Errorf("no JSON of a policy: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("no JSON of a policy: text follows the object")
	}
	return v, nil
}

func value(dec *json.Decoder, depth int) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch d, _ := t.(json.Delim); {
	case depth > 3*maxDepth:
		return nil, errors.New("it is nested too deeply")
	case d == '{':
		return object(dec, depth)
	case d == '[':
		out := []any{}
		for dec.More() {
			v, err := value(dec, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		_, err = dec.Token()
		return out, err
	}
	return t, nil
}

func object(dec *json.Decoder, depth int) (any, error) {
	out := map[string]any{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if _, twice := out[name]; twice || !ok {
			return nil, fmt.Errorf("the member %.60q stands twice", name)
		}
		if out[name], err = value(dec, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token()
	return out, err
}

// MarshalJSON writes the policy in the documented form.
func (p Policy) MarshalJSON() ([]byte, error) {
	type authority struct {
		Authority string      `json:"authority"`
		Any       []Condition `json:"anyOf,omitempty"`
		All       []Condition `json:"allOf,omitempty"`
	}
	out := struct {
		Version string      `json:"version"`
		Any     []authority `json:"anyOf"`
	}{Version: Version}
	for _, a := range p.Authorities {
		out.Any = append(out.Any, authority{a.URL, a.Need.Any, a.Need.All})
	}
	return json.Marshal(out)
}

// MarshalJSON writes the condition, the claim before its operator.
func (c Condition) MarshalJSON() ([]byte, error) {
	switch {
	case c.Any != nil:
		return json.Marshal(map[string]any{"anyOf": c.Any})
	case c.All != nil:
		return json.Marshal(map[string]any{"allOf": c.All})
	}
	claim, err := json.Marshal(c.Claim)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(c.Value)
	return fmt.Appendf(nil, `{"claim":%s,%q:%s}`, claim, c.Operator, value), err
}

var hexDigits = regexp.MustCompile(`^[0-9a-fA-F]{32,}$`)
