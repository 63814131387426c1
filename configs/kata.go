// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/contract"
)

// kataKeys are keys of ours for annotations that mean the same, in the same unit.
var kataKeys = map[string]string{
	"hypervisor.default_vcpus":         "hypervisor.default_vcpus",
	"hypervisor.default_memory":        "hypervisor.default_memory_mib",
	"hypervisor.kernel_params":         "hypervisor.kernel_params",
	"runtime.create_container_timeout": "runtime.create_timeout",
}

// ForPod returns the configuration with what the pod's annotations override, coco's own and Kata's. The annotations
// come back too, with Kata's translated; the notes are about those that have no effect.
func (c Config) ForPod(annotations map[string]string) (cfg Config, overrides map[string]string,
	notes []string, err error,
) {
	overrides, notes = c.WithKata(annotations)
	cfg, err = c.WithAnnotations(overrides)
	return cfg, overrides, notes, err
}

// WithKata translates Kata's annotations into ours where one means the same and runtime.enable_annotations names it; an
// annotation of ours goes before. The notes say of each other one that it has no effect, and what has: a manifest that
// was written for Kata runs, and the notes explain a missing effect.
func (c Config) WithKata(annotations map[string]string) (out map[string]string, notes []string) {
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		kata, ok := strings.CutPrefix(name, contract.KataConfigPrefix)
		if !ok || name == contract.KataInitdata { // read elsewhere, under its own name
			continue
		}
		key := kataKeys[kata]
		ours := contract.ConfigPrefix + key
		switch _, both := annotations[ours]; {
		case key == "":
			notes = append(notes, fmt.Sprintf("annotation %s has no effect: coco has no such setting for pods; those that it "+
				"has are %s…, for keys in "+
				"runtime.enable_annotations (docs/configuration.md)", name, contract.ConfigPrefix))
		case !slices.Contains(c.Runtime.EnableAnnotations, key):
			notes = append(notes, fmt.Sprintf("annotation %s has no effect: runtime.enable_annotations does not name %s, "+
				"which it would set; coco's own "+
				"annotation for it is %s", name, key, ours))
		case both:
			notes = append(notes, fmt.Sprintf("annotation %s has no effect beside %s", name, ours))
		default:
			if out == nil {
				out = maps.Clone(annotations)
			}
			out[ours] = kataValue(key, annotations[name])
		}
	}
	if out == nil {
		out = annotations
	}
	return out, notes
}

// kataValue writes a value as ours: Kata's timeouts are seconds.
func kataValue(key, value string) string {
	if strings.HasSuffix(key, "_timeout") && value != "" && strings.Trim(value, "0123456789") == "" {
		return value + "s"
	}
	return value
}
