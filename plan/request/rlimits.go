// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MergeRlimits returns the limits of all lists; of several for one resource the first counts.
func MergeRlimits(lists ...[]specs.POSIXRlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, list := range lists {
		for _, l := range list {
			if !slices.ContainsFunc(out, func(o specs.POSIXRlimit) bool { return o.Type == l.Type }) {
				out = append(out, l)
			}
		}
	}
	return out
}
