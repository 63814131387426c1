// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/agent/parts"
	"github.com/coco-shim/coco/agent/pull"
)

// pullImages prepares for images that the policy has the guest pull. The module for loop devices is loaded before a
// confidential guest closes the loading of modules.
func (g *guest) pullImages(disks *parts.Parts, owner found) {
	e := owner.policy.Engine
	if e == nil || !e.Pulls() {
		return
	}
	if err := g.mods.Load("loop"); err != nil && !errdefs.IsNotFound(err) { // it may be built into the kernel
		g.log.Error("loop devices for pulled layers", "error", err)
	}
	g.images = pull.New(pull.Config{
		Program:  cotrust.Config{Open: disks.Open, Spawn: g.reaper.Spawn},
		Initdata: owner.initdata, Want: e.Pulled, Resource: g.provisions.secrets.Get, Dir: imagesDir,
	})
	g.mounts.Pull = g.images.Image
}
