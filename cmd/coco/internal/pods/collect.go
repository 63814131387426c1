// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"path/filepath"
)

// Snapshot has the answers of this host's pods at one time.
type Snapshot struct {
	Pods    any    // as coco inspect --json shows each
	Metrics string // of all pods, in the text format
	Places  []Place
	Silent  error // joins those of pods that did not answer
}

// Place is where a pod has its files on the host.
type Place struct {
	ID     string
	Dir    string // below runtime.state_dir
	Bundle string // empty if the shim cannot be found
}

// Take asks all pods whose directories are below dir.
func Take(ctx context.Context, dir string) Snapshot {
	answers, err := gather(ctx, dir)
	list := named(ctx, answers)
	s := Snapshot{Pods: list, Metrics: merge(answers), Silent: err}
	for i := range list {
		list[i].fill(ctx, list[i])
		p := Place{ID: list[i].ID, Dir: filepath.Dir(list[i].socket)}
		if b, err := bundleOf(list[i].socket); err == nil {
			p.Bundle = string(b)
		}
		s.Places = append(s.Places, p)
	}
	return s
}
