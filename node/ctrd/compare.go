// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ctrd

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coco-shim/coco/node/engine"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Dump is a configuration as containerd understood it: the text of `containerd config dump`.
type Dump map[string]any

// ParseDump reads the text.
func ParseDump(text []byte) (Dump, error) {
	var d Dump
	if _, err := toml.Decode(string(text), &d); err != nil {
		return nil, fmt.Errorf("containerd config dump: %w", err)
	}
	return d, nil
}

// runtimesOf returns the tables of runtimes, by plugin: there may be a current one and one that was not migrated.
func (d Dump) runtimesOf() map[string]map[string]any {
	out := map[string]map[string]any{}
	plugins, _ := d["plugins"].(map[string]any)
	for name, p := range plugins {
		plugin, _ := p.(map[string]any)
		section, _ := plugin["containerd"].(map[string]any)
		if runtimes, ok := section["runtimes"].(map[string]any); ok {
			out[name] = runtimes
		}
	}
	return out
}

// Runtimes returns the handlers that the CRI has.
func (d Dump) Runtimes() map[string]any {
	all := d.runtimesOf()
	for _, plugin := range []string{"io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"} {
		if r, ok := all[plugin]; ok {
			return r
		}
	}
	return nil
}

// Ours are the handlers whose shim is coco's.
func (d Dump) Ours() []string {
	var names []string
	for name, r := range d.Runtimes() {
		if isOurs(r) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// isOurs tells whether a runtime was written by Tables.
func isOurs(r any) bool {
	t, _ := r.(map[string]any)
	path, _ := t["runtime_path"].(string)
	return t["runtime_type"] == "io.containerd.coco.v2" && path != ""
}

// Compare returns what is otherwise in after than in before, beside runtimes of ours, one difference a line; and the
// handlers that are missing in after. loose are top-level keys that may differ.
func Compare(before, after Dump, handlers []engine.Handler, loose ...string) (differences []string, missing []string) {
	was, is := flatten(before), flatten(after)
	for _, k := range loose {
		delete(was, k)
		delete(is, k)
	}
	for _, key := range slices.Sorted(maps.Keys(was)) {
		switch now, ok := is[key]; {
		case !ok:
			differences = append(differences, fmt.Sprintf("- %s = %s", key, was[key]))
		case now != was[key]:
			differences = append(differences, fmt.Sprintf("- %s = %s", key, was[key]), fmt.Sprintf("+ %s = %s", key, now))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(is)) {
		if _, ok := was[key]; !ok {
			differences = append(differences, fmt.Sprintf("+ %s = %s", key, is[key]))
		}
	}
	runtimes := after.Runtimes()
	for _, h := range handlers {
		r, _ := runtimes[h.Name].(map[string]any)
		if r["runtime_path"] != h.Shim || r["runtime_type"] != "io.containerd.coco.v2" {
			missing = append(missing, h.Name)
		}
	}
	return differences, missing
}

// flatten returns the values of a configuration by their paths, without runtimes of ours and without the names of
// imported files, which the daemon does not act on.
func flatten(d Dump) map[string]string {
	out := map[string]string{}
	var walk func(path []string, v any)
	walk = func(path []string, v any) {
		table, ok := v.(map[string]any)
		if !ok {
			text, err := json.Marshal(v)
			if err != nil {
				text = fmt.Append(nil, v)
			}
			out[strings.Join(path, ".")] = string(text)
			return
		}
		for k, v := range table {
			if len(path) == 4 && path[0] == "plugins" && path[2] == "containerd" && path[3] == "runtimes" && isOurs(v) ||
				len(path) == 0 && k == "imports" {
				continue
			}
			walk(append(slices.Clone(path), key(k)), v)
		}
	}
	walk(nil, map[string]any(d))
	return out
}
