// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/virtcontainers/state"
)

// Journal is what the journal keeps of hooks.
func Journal(in []specs.Hook) []state.Hook {
	var out []state.Hook
	for _, h := range in {
		s := state.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil {
			s.Timeout = *h.Timeout
		}
		out = append(out, s)
	}
	return out
}
