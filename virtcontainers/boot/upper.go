// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"fmt"

	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/virtcontainers/upper"
)

// findUpper finds the directory of the engine to which what the only container writes is brought back. It completes
// what an earlier run of the container has left to do there, before layers are made of it.
func (c *creation) findUpper(context.Context) error {
	if c.opts.First == nil || !c.opts.Config.KeepsFiles() {
		return nil
	}
	plan, err := c.opts.First.Layers.Plan()
	if err != nil || plan.Upper == "" || len(plan.Lower) == 0 {
		return nil //nolint:nilerr // the search for the layers tells; without an overlay there is no upper directory
	}
	d := upper.Dirs{Upper: plan.Upper, UserXattr: plan.UserXattr}
	if r := c.opts.First.Layers; len(r.Mounts) == 0 {
		d.Merged = r.Root
	}
	for _, l := range plan.Lower {
		if l.Kind == layer.Dir {
			d.Lower = append(d.Lower, l.Path)
		}
	}
	if err := upper.Finish(d); err != nil {
		return fmt.Errorf("files of the container's last run: %w", err)
	}
	if c.opts.Initdata == "" && c.opts.Config.Hypervisor.Initdata == "" { // with a policy, the guest sends no files
		c.Upper = upper.New(d)
	}
	return nil
}
