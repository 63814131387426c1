// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package filters knows the seccomp filters that RuntimeDefault is. containerd makes the filter of a container by code
// of its own, which changes with its releases and depends on the container's capabilities. filters.json has the digest
// of each, for amd64; tools/filters.sh asks the releases for them.
package filters

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Release has the filters that some releases of containerd share.
type Release struct {
	Releases []string `json:"releases"` // those that were asked, in their order
	// Filters has digests as policy.SeccompDigest makes them. A key has those of the container's capabilities that change
	// the filter, in the order in which its specification lists them, with a space between.
	Filters map[string]string `json:"filters"`
}

//go:embed filters.json
var text []byte

var all = sync.OnceValue(func() (out []Release) {
	if err := json.Unmarshal(text, &out); err != nil {
		panic(fmt.Sprintf("filters.json: %v", err)) // it is a part of this program
	}
	return out
})

// changing are the capabilities that change a filter.
var changing = []string{
	"CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_PACCT",
	"CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF",
	"CAP_PERFMON",
}

// Of returns the digests of the filters that RuntimeDefault may be for a container with these capabilities in its
// bounding set, each once, the oldest release's first. It returns nil for a combination of capabilities that
// filters.json does not have.
func Of(bounding []string) (out []string) {
	var key []string
	for _, c := range bounding {
		if slices.Contains(changing, c) {
			key = append(key, c)
		}
	}
	for _, r := range all() {
		if d := r.Filters[strings.Join(key, " ")]; d != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// Name tells of a digest which releases' filter it is; "" for others.
func Name(digest string) string {
	var names []string
	for _, r := range all() {
		for _, d := range r.Filters {
			if d == digest {
				names = append(names, r.Releases...)
				break
			}
		}
	}
	return strings.Join(names, ", ")
}
