// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/coco-shim/coco/node/engine"
)

// kinds are the handlers of each version, and their configuration files below share/coco/configs; "" is the one that
// the shim finds: /etc/coco, else what is built in.
var kinds = []struct{ name, config string }{
	{"coco", ""},
	{"coco-snp", "config-qemu-snp.toml"},
	{"coco-tdx", "config-qemu-tdx.toml"},
	{"coco-clh", "config-clh.toml"},
	{"coco-clh-snp", "config-clh-snp.toml"},
}

var handlerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// checkAliases refuses names that the API server would refuse, and targets that are no handler.
func checkAliases(aliases map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(aliases)) {
		if !handlerName.MatchString(name) {
			return fmt.Errorf("alias %q is no name for a handler: lower-case letters, digits, '-' and '.', at most 63", name)
		}
		known := false
		for _, k := range kinds {
			if k.name == name {
				return fmt.Errorf("alias %q is the name of a handler of coco", name)
			}
			known = known || k.name == aliases[name]
		}
		if !known {
			return fmt.Errorf("alias %s=%s: coco has no handler %q", name, aliases[name], aliases[name])
		}
	}
	return nil
}

// handlers are all that the engines get: the plain names and aliases for the current version, and names with the hash
// for each version that is installed.
func handlers(prefix, current string, versions []string, aliases map[string]string) []engine.Handler {
	var out []engine.Handler
	entry := func(name, config, version string) engine.Handler {
		dir := versionDir(prefix, version)
		h := engine.Handler{Name: name, Shim: filepath.Join(dir, Shim)}
		if config != "" {
			h.Config = filepath.Join(dir, "share/coco/configs", config)
		}
		return h
	}
	for _, k := range kinds {
		out = append(out, entry(k.name, k.config, current))
	}
	for _, alias := range slices.Sorted(maps.Keys(aliases)) {
		for _, k := range kinds {
			if k.name == aliases[alias] {
				out = append(out, entry(alias, k.config, current))
			}
		}
	}
	for _, v := range slices.Sorted(slices.Values(versions)) {
		for _, k := range kinds {
			out = append(out, entry(k.name+"-"+v, k.config, v))
		}
	}
	return out
}

func versionDir(prefix, hash string) string { return filepath.Join(prefix, "versions", hash) }
