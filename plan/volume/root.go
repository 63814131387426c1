// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import "strings"

// Root is a directory of a kubelet or a container engine: as it was named, and without symbolic links.
type Root struct{ Name, Real string }

// below returns a path relative to the directory.
func (r Root) below(p string) (string, bool) {
	for _, base := range []string{r.Real, r.Name} {
		if rel, ok := strings.CutPrefix(p, base+"/"); ok && base != "" && rel != "" {
			return rel, true
		}
	}
	return "", false
}
