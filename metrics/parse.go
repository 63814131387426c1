// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Sample is one value.
type Sample struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

// Parse reads the samples of a text.
func Parse(text string) ([]Sample, error) {
	var out []Sample
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseSample(line)
		if err != nil {
			return nil, fmt.Errorf("metrics: line %q: %w", line, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// pairs are the labels in the order of their names.
func (s Sample) pairs() []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		out = append(out, k, s.Labels[k])
	}
	return out
}

// isName accepts the names that need no quoting: [a-zA-Z_][a-zA-Z0-9_]*.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// parseSample reads name{label="value",…} value.
func parseSample(line string) (Sample, error) {
	end := strings.IndexAny(line, "{ ")
	if end < 0 {
		return Sample{}, errors.New("no value")
	}
	s := Sample{Name: line[:end]}
	if !isName(s.Name) {
		return Sample{}, fmt.Errorf("%q is not a name", s.Name)
	}
	rest := line[end:]
	if rest[0] == '{' {
		var err error
		if s.Labels, rest, err = parseLabels(rest[1:]); err != nil {
			return Sample{}, err
		}
	}
	f := strings.Fields(rest)
	if len(f) != 1 { // a time stamp is not used here
		return Sample{}, errors.New("not one value")
	}
	v, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		return Sample{}, fmt.Errorf("value: %w", err)
	}
	s.Value = v
	return s, nil
}

// parseLabels reads up to the closing brace and returns what follows.
func parseLabels(s string) (map[string]string, string, error) {
	labels := map[string]string{}
	for {
		if rest, ok := strings.CutPrefix(s, "}"); ok {
			return labels, rest, nil
		}
		name, rest, ok := strings.Cut(s, `="`)
		if !ok || !isName(name) {
			return nil, "", errors.New("labels are not well formed")
		}
		value, rest, ok := unquote(rest)
		if !ok {
			return nil, "", fmt.Errorf("label %s does not end", name)
		}
		labels[name] = value
		s = strings.TrimPrefix(rest, ",")
	}
}

// unquote reads up to the closing quotation mark.
func unquote(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			if s[i] == 'n' {
				b.WriteByte('\n')
			} else {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}
