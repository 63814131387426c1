// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown/print"

	"github.com/coco-shim/coco/internal/words"
)

// dataRule begins the last part of a generated policy.
var dataRule = regexp.MustCompile(`(?m)^policy_data[ \t]*:?=[ \t]*\{`)

// cut takes the data of a generated policy off its end, and leaves a reference to them. OPA's type checker knows the
// shape of a constant object, and refuses rules that ask for members which this policy's data do not have; it does not
// know the shape of base data. Data that are not plain JSON up to the end of the text stay what they are: Rego.
func cut(text string) (rules string, data ast.Value) {
	data = ast.NewObject()
	all := dataRule.FindAllStringIndex(text, -1)
	if len(all) != 1 {
		return text, data
	}
	begin, brace := all[0][0], all[0][1]-1
	dec := json.NewDecoder(strings.NewReader(text[brace:]))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return text, data
	}
	if _, err := dec.Token(); err != io.EOF {
		return text, data
	}
	value, err := ast.InterfaceToValue(v)
	if err != nil {
		return text, data
	}
	return text[:begin] + "policy_data := data." + dataKey + "\n", value
}

// maxDepth bounds brackets within brackets. The parser and the compiler follow them by recursion, and a stack that
// overflows ends a program.
const maxDepth = 200

// shallow refuses text with too many brackets that are open at the same time.
func shallow(text string) error {
	depth, deepest := 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '#':
			i += length(text[i:], "\n")
		case '`':
			i += 1 + length(text[i+1:], "`")
		case '"':
			for i++; i < len(text) && text[i] != '"' && text[i] != '\n'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case '(', '[', '{':
			depth++
			deepest = max(deepest, depth)
		case ')', ']', '}':
			depth--
		}
	}
	if deepest > maxDepth {
		return fmt.Errorf("the policy has %d brackets within each other, more than %d", deepest, maxDepth)
	}
	return nil
}

// length is the number of bytes up to and including the end that is looked for.
func length(text, end string) int {
	if i := strings.Index(text, end); i >= 0 {
		return i
	}
	return len(text)
}

// Bounds of a denial's text.
const (
	maxReason = 1024
	maxTail   = 840 // of the rules' prints
)

// tail keeps the end of what rules print: the last lines are about the comparison that failed last.
type tail struct {
	text []byte
	more bool
}

// Print takes one line.
func (t *tail) Print(_ print.Context, line string) error {
	if len(line) > maxTail {
		line, t.more = line[len(line)-maxTail:], true
	}
	if len(t.text) > 0 {
		t.text = append(t.text, ' ')
	}
	t.text = append(t.text, line...)
	if n := len(t.text) - maxTail; n > maxTail {
		t.text, t.more = slices.Delete(t.text, 0, n), true
	}
	return nil
}

// String returns the end, at most maxTail bytes of it.
func (t *tail) String() string {
	text := t.text
	if n := len(text) - maxTail; n > 0 {
		text, t.more = text[n:], true
	}
	if t.more {
		return "…" + words.UTF8(string(text), len(text)*3)
	}
	return string(text)
}

// functions are those that a policy may call. Each is a function of its arguments alone.
var functions = strings.Fields(`
	abs all and any array.concat array.flatten array.reverse array.slice assign base64.decode base64.encode
	base64.is_valid base64url.decode base64url.encode base64url.encode_no_pad bits.and bits.lsh bits.negate bits.or
	bits.rsh bits.xor cast_array cast_boolean cast_null cast_object cast_set cast_string ceil concat contains count
	crypto.sha256 div endswith eq equal floor format_int glob.match glob.quote_meta graph.reachable
	graph.reachable_paths gt gte hex.decode hex.encode indexof indexof_n internal.member_2 internal.member_3
	internal.print internal.template_string intersection is_array is_boolean is_null is_number is_object is_set
	is_string json.filter json.is_valid json.marshal json.patch json.remove json.unmarshal lower lt lte max min minus
	mul neq net.cidr_contains net.cidr_intersects net.cidr_is_valid numbers.range numbers.range_step object.filter
	object.get object.keys object.remove object.subset object.union object.union_n or plus print product re_match
	regex.find_all_string_submatch_n regex.find_n regex.is_valid regex.match regex.replace regex.split rem replace
	round semver.compare semver.is_valid set_diff sort split sprintf startswith strings.any_prefix_match
	strings.any_suffix_match strings.count strings.replace_n strings.reverse substring sum to_number trim trim_left
	trim_prefix trim_right trim_space trim_suffix type_name union units.parse units.parse_bytes upper walk`)

// capabilities are OPA's with these functions only.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !slices.Contains(functions, b.Name) })
	c.AllowNet = []string{}
	return c
}
