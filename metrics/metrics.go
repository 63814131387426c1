// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package metrics writes, serves and reads the Prometheus text format (version 0.0.4). It is written by
// hand because each pod has a shim, and the client library would add megabytes to each.
//
// The package counts and keeps nothing: a Set is made anew for each reader and thrown away.
package metrics

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/internal/words"
)

// Set has the samples of one answer.
type Set struct {
	labels   string   // of every sample, as written
	names    []string // of those labels
	families []*family
	by       map[string]*family
}

type family struct {
	name, kind, help string
	lines            []string
}

// New makes an empty set; the labels, pairs of name and value, are those of every sample.
func New(labels ...string) *Set {
	s := &Set{labels: encodeLabels(labels), by: map[string]*family{}}
	for i := 0; i < len(labels); i += 2 {
		s.names = append(s.names, labels[i])
	}
	return s
}

// Gauge adds a value that goes up and down.
func (s *Set) Gauge(name, help string, v float64, labels ...string) {
	s.add("gauge", name, help, v, labels)
}

// Counter adds a value that only grows while its subject lives.
func (s *Set) Counter(name, help string, v float64, labels ...string) {
	s.add("counter", name, help, v, labels)
}

func (s *Set) add(kind, name, help string, v float64, labels []string) {
	s.line(kind, name, help, encodeLabels(labels), strconv.FormatFloat(v, 'g', -1, 64))
}

func (s *Set) line(kind, name, help, labels, value string) {
	f := s.by[name]
	if f == nil {
		f = &family{name: name, kind: kind, help: help}
		s.by[name] = f
		s.families = append(s.families, f)
	}
	all := s.labels
	if all != "" && labels != "" {
		all += ","
	}
	if all += labels; all != "" {
		all = "{" + all + "}"
	}
	f.lines = append(f.lines, name+all+" "+value+"\n")
}

// String is the text format.
func (s *Set) String() string {
	var b strings.Builder
	for _, f := range s.families {
		b.WriteString("# HELP " + f.name + " " + f.help + "\n# TYPE " + f.name + " " + f.kind + "\n")
		for _, l := range f.lines {
			b.WriteString(l)
		}
	}
	return b.String()
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// Bounds on texts from a guest or a tenant.
const (
	mostValue  = 256 // bytes of a label's value, or of a help
	mostName   = 128 // bytes of a metric's name, or of a label's
	mostLabels = 16  // of one sample
)

func encodeLabels(pairs []string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i] + `="` + escape.Replace(words.Line(pairs[i+1], mostValue)) + `"`)
	}
	return b.String()
}

// Adopt adds the guest's metrics in the text format. It leaves out lines that are not well formed, and names without
// one of the prefixes: a guest must not forge other metrics.
func (s *Set) Adopt(text string, prefixes ...string) {
	const most = 1000               // samples
	about := map[string][2]string{} // kind and help by name
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if word, rest, ok := comment(line); ok {
			name, value, _ := strings.Cut(rest, " ")
			a := about[name]
			if word == "TYPE" {
				a[0] = value
			} else {
				a[1] = value
			}
			about[name] = a
			continue
		}
		sm, err := parseSample(line)
		if err != nil || len(seen) == most || !sm.isSmall() || math.IsNaN(sm.Value) || math.IsInf(sm.Value, 0) ||
			!slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(sm.Name, p) }) {
			continue
		}
		for _, own := range s.names {
			delete(sm.Labels, own)
		}
		labels := encodeLabels(sm.pairs())
		if seen[sm.Name+labels] {
			continue
		}
		seen[sm.Name+labels] = true
		a := about[sm.Name]
		if a[0] != "counter" {
			a[0] = "gauge"
		}
		s.line(a[0], sm.Name, words.Line(a[1], mostValue), labels, strconv.FormatFloat(sm.Value, 'g', -1, 64))
	}
}

// isSmall says whether a sample has few labels with short names, none of which is Prometheus' own.
func (s Sample) isSmall() bool {
	ok := len(s.Name) <= mostName && len(s.Labels) <= mostLabels
	for name := range s.Labels {
		ok = ok && len(name) <= mostName && !strings.HasPrefix(name, "__")
	}
	return ok
}

// comment splits "# HELP name …" and "# TYPE name …".
func comment(line string) (word, rest string, ok bool) {
	rest, ok = strings.CutPrefix(line, "# ")
	if !ok {
		return "", "", strings.HasPrefix(line, "#")
	}
	word, rest, _ = strings.Cut(rest, " ")
	return word, rest, true
}
