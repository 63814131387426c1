// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// WithRoom returns where a process that needs that much memory can be put: the OCI path itself, or, when
// a group on that path allows less, a group of its own beside that one, named after the path's last part.
//
// A pod's group has the sum of its containers' limits. The VM is larger by the guest's kernel, and what
// a RuntimeClass declares as overhead makes room for that. A pod without a RuntimeClass has no such
// room: the kernel would end its VMM as soon as the guest used what its containers were promised. So
// the VMM runs beside the group then, still below the limits of everything above it, and the guest alone
// holds the containers to their limits.
func WithRoom(hs []Hierarchy, ociPath string, need uint64) (string, error) {
	rel, err := relative(ociPath)
	if err != nil || rel == "" {
		return ociPath, err
	}
	parts := strings.Split(rel, "/")
	for i := range parts {
		above := filepath.Join(parts[:i+1]...)
		for _, h := range hs {
			if limit(filepath.Join(h.Mount, above)) < need {
				// A kubelet sweeps only groups that it named itself; this is none of them.
				return "/" + filepath.Join(filepath.Dir(above), "coco-"+parts[len(parts)-1]), nil
			}
		}
	}
	return ociPath, nil
}

// limit is the memory that a group allows itself; no limit, and no such group or controller, is the
// largest number.
func limit(dir string) uint64 {
	least := ^uint64(0)
	for _, f := range []string{"memory.max", "memory.limit_in_bytes"} {
		text, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
			least = min(least, n)
		}
	}
	return least
}
