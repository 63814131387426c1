// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copies

import (
	"testing"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// TestWhereAContainerSeesAFile: the paths of a copied volume in the mounts of a container.
func TestWhereAContainerSeesAFile(t *testing.T) {
	use := func(dst, volume, sub string) policy.Mount {
		return policy.Mount{Destination: dst, Source: policy.Source{Volume: &policy.Use{Name: volume, SubPath: sub}}}
	}
	p := &policy.Policy{Volumes: []policy.Volume{
		{Name: "v", Content: &policy.Content{}},
		{Name: "w", Content: &policy.Content{}},
		{Name: "d", Kind: policy.VolumeDisk},
	}}
	places := map[string]string{"v": "/files/sandbox-v", "w": "/files/sandbox-w", "d": "/storage/sandbox-v"}
	for name, tc := range map[string]struct {
		mount policy.Mount
		rest  string
		want  string // "": not seen
	}{
		"a volume":                {use("/etc/v/", "v", ""), "..2026/a/b", "/etc/v/a/b"},
		"another volume":          {use("/etc/v", "w", ""), "..2026/a", ""},
		"a disk":                  {use("/etc/v", "d", ""), "a", ""},
		"a volume without a copy": {use("/etc/v", "x", ""), "a", ""},
		"a directory of it":       {use("/etc/v", "v", "a"), "..2026/a/b", "/etc/v/b"},
		"another directory":       {use("/etc/v", "v", "a"), "..2026/ab/b", ""},
		"a file of it":            {use("/etc/v", "v", "a"), "..2026/a", "/etc/v"},
	} {
		c := &policy.Container{Mounts: []policy.Mount{tc.mount}}
		d := stray(p, Holder{ID: "id", Of: c, Places: places}, "sandbox-v/"+tc.rest)
		if (d == nil) != (tc.want == "") || d != nil && d.Field != "file "+compare.Quote(tc.want) {
			t.Errorf("%s: %v, want %q", name, d, tc.want)
		}
		c.Secrets = []policy.Secret{{File: tc.want, Sealed: true}}
		if d := stray(p, Holder{ID: "id", Of: c, Places: places}, "sandbox-v/"+tc.rest); d != nil {
			t.Errorf("%s, opened: %v", name, d)
		}
	}
}
