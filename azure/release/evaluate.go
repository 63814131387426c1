// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package release

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// Verdict says whether a condition holds. The zero verdict is no.
type Verdict int

// Verdicts.
const (
	No Verdict = iota
	// Unknown belongs to claims that a predicted launch does not have: the attestation service decides on them.
	Unknown
	Yes
)

// String returns the word for tables.
func (v Verdict) String() string {
	return [...]string{"no", "unknown", "yes"}[v]
}

// MarshalText returns the word for JSON.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Claims are the claims of one token, or of a prediction.
type Claims struct {
	// Values are decoded by encoding/json with UseNumber.
	Values map[string]any
	// Issuer is the token's iss. A prediction has none, and fits every authority.
	Issuer string
	// Predicted says that a claim which is not in Values is unknown, not absent.
	Predicted bool
}

// Result is the verdict on one condition and those below it.
type Result struct {
	// Path is the condition's place: anyOf[0].allOf[2].
	Path    string  `json:"path"`
	Verdict Verdict `json:"verdict"`
	// Condition is a comparison in words, "anyOf", "allOf" or an authority.
	Condition string `json:"condition"`
	// By is the claim's value in the token, or why there is none.
	By    string   `json:"by"`
	Below []Result `json:"below,omitempty"`
}

// Leaves returns the comparisons, and authorities that do not fit, in the order of the policy.
func (r Result) Leaves() []Result {
	if len(r.Below) == 0 {
		return []Result{r}
	}
	var out []Result
	for _, b := range r.Below {
		out = append(out, b.Leaves()...)
	}
	return out
}

// Evaluate judges the claims.
func (p *Policy) Evaluate(c Claims) Result {
	r := Result{Path: "policy", Condition: "anyOf"}
	for i, a := range p.Authorities {
		path := fmt.Sprintf("anyOf[%d]", i)
		if c.Issuer != "" || !c.Predicted {
			if !sameAuthority(a.URL, c.Issuer) {
				r.Below = append(r.Below, Result{
					Path: path, Condition: "authority is " + a.URL, By: "the token's issuer is " + quoted(c.Issuer),
				})
				continue
			}
		}
		below := c.judge(path, a.Need)
		below.Condition = "authority " + a.URL + ": " + below.Condition
		r.Below = append(r.Below, below)
	}
	return r.settle(false)
}

// sameAuthority compares an authority with an issuer. A slash at the end and the case of the scheme and host do not
// matter.
func sameAuthority(authority, issuer string) bool {
	return issuer != "" && strings.EqualFold(strings.TrimRight(authority, "/"), strings.TrimRight(issuer, "/"))
}

// settle computes the verdict of a list from those below: all must hold, or any.
func (r Result) settle(all bool) Result {
	count := map[Verdict]int{}
	for _, b := range r.Below {
		count[b.Verdict]++
	}
	n := len(r.Below)
	switch {
	case n == 0:
		r.Verdict = No
	case all && count[Yes] == n, !all && count[Yes] > 0:
		r.Verdict = Yes
	case all && count[No] > 0, !all && count[No] == n:
		r.Verdict = No
	default:
		r.Verdict = Unknown
	}
	r.By = fmt.Sprintf("%d of %d hold", count[Yes], n)
	if count[Unknown] > 0 {
		r.By += fmt.Sprintf(", %d are unknown", count[Unknown])
	}
	return r
}

func (c Claims) judge(path string, n Condition) Result {
	list, all, kind := n.Any, false, "anyOf"
	if n.All != nil {
		list, all, kind = n.All, true, "allOf"
	}
	if n.Claim == "" {
		r := Result{Path: path, Condition: kind}
		for i, b := range list {
			r.Below = append(r.Below, c.judge(fmt.Sprintf("%s.%s[%d]", path, kind, i), b))
		}
		return r.settle(all)
	}
	r := Result{Path: path, Condition: fmt.Sprintf("%s %s %s", n.Claim, n.Operator, text(n.Value))}
	got, found := c.lookup(n.Claim)
	switch {
	case found:
		r.Verdict, r.By = compare(n, got)
	case c.Predicted:
		r.Verdict, r.By = Unknown, "the launch does not decide it"
	case n.Operator == Exists:
		want, _ := truth(n.Value)
		r.Verdict, r.By = verdict(!want), "the token does not have the claim"
	default:
		r.By = "the token does not have the claim"
	}
	return r
}

// lookup follows the dots of a name. A name in which a dot belongs to a member's name cannot be reached, as at Azure.
func (c Claims) lookup(name string) (any, bool) {
	var at any = c.Values
	for part := range strings.SplitSeq(name, ".") {
		object, ok := at.(map[string]any)
		if !ok {
			return nil, false
		}
		if at, ok = object[part]; !ok {
			return nil, false
		}
	}
	return at, true
}

// compare compares a claim that is there. A claim that is null, a list or an object satisfies no comparison; the latter
// two exist.
func compare(n Condition, got any) (Verdict, string) {
	by := text(got)
	if n.Operator == Exists {
		want, _ := truth(n.Value)
		return verdict(want && got != nil), "it is " + by
	}
	switch got.(type) {
	case string, bool, json.Number:
	default:
		return No, "it is " + by + ", which cannot be compared"
	}
	switch n.Operator {
	case Equals:
		return verdict(equal(n.Value, got)), "it is " + by
	case NotEquals:
		return verdict(!equal(n.Value, got)), "it is " + by
	}
	want, okWant := rational(text(n.Value))
	have, okHave := rational(text(got))
	if !okWant || !okHave {
		return No, "it is " + by + ", which is no number"
	}
	cmp := have.Cmp(want)
	return verdict(map[Operator]bool{
		Less: cmp < 0, LessOrEquals: cmp <= 0, Greater: cmp > 0, GreaterOrEquals: cmp >= 0,
	}[n.Operator]), "it is " + by
}

// equal compares by text: policies in use write "false" for false and "0" for 0. Numbers of the same value are equal.
func equal(a, b any) bool {
	_, okA := a.(json.Number)
	_, okB := b.(json.Number)
	if okA || okB {
		x, okX := rational(text(a))
		y, okY := rational(text(b))
		return okX && okY && x.Cmp(y) == 0
	}
	return text(a) == text(b)
}

func verdict(ok bool) Verdict {
	if ok {
		return Yes
	}
	return No
}

// text returns a value as it stands in messages and comparisons: strings without quotes.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	case nil:
		return "null"
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	}
	return fmt.Sprintf("a %T", v)
}

func quoted(s string) string {
	if s == "" {
		return "not there"
	}
	return strconv.Quote(s)
}

// truth reads true and false, also as text.
func truth(v any) (value, ok bool) {
	switch text(v) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

// plain are the numbers that are compared: a hostile exponent would make others large.
var plain = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,29})(\.[0-9]{1,30})?$`)

func rational(s string) (*big.Rat, bool) {
	if !plain.MatchString(s) {
		return nil, false
	}
	return new(big.Rat).SetString(s)
}
