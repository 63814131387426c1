// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxProblems is how many problems are reported.
const maxProblems = 100

// reader collects pods and problems.
type reader struct {
	pods   []*found
	limits []limitRange
	notes  []string
	errs   []error
	depth  int
	left   int // values that may still be looked at
}

// newReader bounds the work by the length of the text: each value in it, of six bytes at least, may be looked at
// several times, but aliases may not repeat it for ever.
func newReader(text int) *reader { return &reader{left: 20_000 + text} }

func (r *reader) full() bool { return r.left <= 0 || len(r.errs) >= maxProblems }

// look counts a value.
func (r *reader) look(n *yaml.Node) bool {
	if r.left--; r.left == 0 {
		r.errs = append(r.errs, fmt.Errorf("line %d: aliases repeat too much of the manifest", n.Line))
	}
	return r.left > 0
}

func (r *reader) problem(err error) {
	switch {
	case len(r.errs) < maxProblems:
		r.errs = append(r.errs, err)
	case len(r.errs) == maxProblems:
		r.errs = append(r.errs, errors.New("there are more problems"))
	}
}

// bad notes a problem.
func (r *reader) bad(n *yaml.Node, where, format string, args ...any) {
	r.problem(fmt.Errorf("line %d: %s: %s", n.Line, where, fmt.Sprintf(format, args...)))
}

func (r *reader) note(format string, args ...any) {
	if len(r.notes) < maxProblems {
		r.notes = append(r.notes, fmt.Sprintf(format, args...))
	}
}

// passedOver are the notes, behind a message that nothing was found.
func (r *reader) passedOver() string {
	if len(r.notes) == 0 {
		return ""
	}
	return "; " + strings.Join(r.notes, "; ")
}

// clip shortens a text of the manifest for a message.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// short is an error of the YAML reader with a text of bounded length.
func short(err error) error { return errors.New(clip(err.Error())) }

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// resolve follows an alias.
func resolve(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line}
}

// fields reads a mapping; known, if given, are its keys.
func (r *reader) fields(n *yaml.Node, where string, known []string) map[string]*yaml.Node {
	m := mapping{reader: r, where: where, known: known, values: map[string]*yaml.Node{}, own: map[string]bool{}}
	if n != nil {
		if n = resolve(n); !isNull(n) {
			m.read(n, 0)
		}
	}
	return m.values
}

// mapping is one that is being read.
type mapping struct {
	*reader
	where  string
	known  []string
	values map[string]*yaml.Node
	own    map[string]bool // keys that are not merged from elsewhere
}

// read takes the keys in order. As kubectl's reader of YAML does (YAML 1.1, go.yaml.in/yaml/v2), a merge key sets what
// it merges at its place: it replaces what stands before it, and is replaced by what comes after.
func (m *mapping) read(n *yaml.Node, depth int) {
	if n.Kind != yaml.MappingNode {
		m.bad(n, m.where, "is not a mapping")
		return
	}
	if depth > 8 {
		m.bad(n, m.where, "merges mappings that merge too many others")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !m.look(k) {
			return
		}
		switch {
		case k.Kind == yaml.ScalarNode && k.Tag == "!!merge":
			m.merge(resolve(v), depth)
		case k.Kind != yaml.ScalarNode:
			m.bad(k, m.where, "has a key that is no plain text")
		case m.own[k.Value] && depth == 0:
			m.bad(k, m.where, "has the key %.60q twice", k.Value)
		case m.known != nil && !slices.Contains(m.known, k.Value):
			m.bad(k, m.where, "has an unknown key %.60q", k.Value)
		default:
			m.values[k.Value] = resolve(v)
			m.own[k.Value] = m.own[k.Value] || depth == 0
		}
	}
}

// merge takes one mapping, or several of which the first that has a key gives it.
func (m *mapping) merge(n *yaml.Node, depth int) {
	if n.Kind != yaml.SequenceNode {
		m.read(n, depth+1)
		return
	}
	for _, c := range slices.Backward(n.Content) {
		if !m.look(c) {
			return
		}
		m.read(resolve(c), depth+1)
	}
}

// Words of YAML 1.1 that are true or false.
var (
	truths = strings.Fields("y Y yes Yes YES true True TRUE on On ON")
	lies   = strings.Fields("n N no No NO false False FALSE off Off OFF")
)

// plain tells whether a scalar stands in the text without quotes and tag, so that its form decides what it is.
func plain(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode &&
		n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0
}

func (r *reader) text(n *yaml.Node, where string) string {
	switch {
	case n == nil || isNull(n):
		return ""
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str" || plain(n) &&
		(slices.Contains(truths, n.Value) || slices.Contains(lies, n.Value)):
		r.bad(n, where, "is not a string")
	}
	return n.Value
}

func (r *reader) truth(n *yaml.Node, where string) bool {
	if n == nil || isNull(n) {
		return false
	}
	yes, no := slices.Contains(truths, n.Value), slices.Contains(lies, n.Value)
	if n.Kind != yaml.ScalarNode || !yes && !no || !plain(n) && n.Tag != "!!bool" {
		r.bad(n, where, "is not true or false")
	}
	return yes
}

func (r *reader) items(n *yaml.Node, where string) []*yaml.Node {
	if n == nil || isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.bad(n, where, "is not a list")
		return nil
	}
	var out []*yaml.Node
	for _, c := range n.Content {
		if !r.look(c) {
			return nil
		}
		out = append(out, resolve(c))
	}
	return out
}

// quantityText is a quantity as the API server gets it: kubectl turns numbers of YAML 1.1, among them octal ones such
// as 0777, into those of JSON first.
func quantityText(n *yaml.Node) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode || isNull(n):
		return "", false
	case !plain(n) && n.Tag != "!!int" && n.Tag != "!!float":
		return n.Value, n.Tag == "!!str"
	case slices.Contains(truths, n.Value) || slices.Contains(lies, n.Value):
		return "", false
	}
	return jsonNumber(n.Value), true
}

// jsonNumber is a scalar's number in JSON, or the scalar if it is none.
func jsonNumber(s string) string {
	if s == "" || !strings.ContainsRune("+-.0123456789", rune(s[0])) || len(s) > 100 {
		return s
	}
	digits := strings.ReplaceAll(s, "_", "")
	if n, err := strconv.ParseInt(digits, 0, 64); err == nil {
		return strconv.FormatInt(n, 10)
	}
	if n, err := strconv.ParseUint(digits, 0, 64); err == nil {
		return strconv.FormatUint(n, 10)
	}
	if !isFloat(digits) {
		return s
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return s
	}
	text, err := json.Marshal(f)
	if err != nil {
		return s
	}
	return string(text)
}

// isFloat tells whether a text is a number with a point or an exponent:
// [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?
func isFloat(s string) bool {
	digits := func() (n int) {
		for s != "" && s[0] >= '0' && s[0] <= '9' {
			s = s[1:]
			n++
		}
		return n
	}
	sign := func() {
		if s != "" && (s[0] == '-' || s[0] == '+') {
			s = s[1:]
		}
	}
	sign()
	whole, fraction := digits(), 0
	if strings.HasPrefix(s, ".") {
		s = s[1:]
		fraction = digits()
	}
	if whole+fraction == 0 {
		return false
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		sign()
		if digits() == 0 {
			return false
		}
	}
	return s == ""
}
