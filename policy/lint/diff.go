// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/policy"
)

// Change is a member that differs. Old or New is empty where it is missing.
type Change struct {
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// String is the change as a line.
func (c Change) String() string {
	switch {
	case c.Old == "":
		return fmt.Sprintf("+ %s: %s", c.Path, c.New)
	case c.New == "":
		return fmt.Sprintf("- %s: %s", c.Path, c.Old)
	}
	return fmt.Sprintf("~ %s: %s -> %s", c.Path, c.Old, c.New)
}

// Diff lists the members in which policies differ, in the order of their paths. Elements of lists that have a name, a
// key, a path, a destination, a file or a variable are compared with those of the same.
func Diff(a, b *policy.Policy) ([]Change, error) {
	from, err := flat(a)
	if err != nil {
		return nil, err
	}
	to, err := flat(b)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(from)
	maps.Copy(all, to)
	out := []Change{}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if from[path] != to[path] {
			out = append(out, Change{path, from[path], to[path]})
		}
	}
	return out, nil
}

// flat lists the leaves of a policy by their paths.
func flat(p *policy.Policy) (map[string]string, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	out := map[string]string{}
	flatten(out, "", v)
	return out, nil
}

func flatten(out map[string]string, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, m := range v {
			flatten(out, strings.TrimPrefix(at+"."+k, "."), m)
		}
	case []any:
		for i, e := range v {
			flatten(out, at+"["+index(i, e)+"]", e)
		}
	default:
		text, err := json.Marshal(v)
		if err != nil {
			text = []byte(err.Error())
		}
		out[at] = string(text)
	}
}

// index is what an element of a list is called by.
func index(i int, e any) string {
	if m, ok := e.(map[string]any); ok {
		for _, key := range []string{"name", "key", "destination", "path", "file", "env"} {
			if s, ok := m[key].(string); ok {
				return s
			}
		}
	}
	return strconv.Itoa(i)
}
