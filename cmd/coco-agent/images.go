// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/agent/parts"
	"github.com/coco-shim/coco/agent/pull"
)

// loginKey is the key of cdh.toml that names the resource with the logins of registries.
const loginKey = "authenticated_registry_credentials_uri"

// loginResource returns that resource, "kbs:///repository/type/tag"; "": there is none. coco-trust reads the file as
// TOML and refuses it where it is wrong; here it is enough that the owner's text has the resource behind the key.
func loginResource(cdh string) string {
	_, after, _ := strings.Cut(cdh, loginKey)
	after = strings.TrimLeft(after, " \t\"'")
	value, ok := strings.CutPrefix(after, "=")
	value = strings.TrimLeft(value, " \t")
	if !ok || value == "" || value[0] != '"' && value[0] != '\'' {
		return ""
	}
	uri, _, ok := strings.Cut(value[1:], value[:1])
	if rest, named := strings.CutPrefix(uri, "kbs://"); named {
		_, uri, _ = strings.Cut(rest, "/")
	}
	if uri = strings.TrimPrefix(uri, "/"); !ok || uri == "" {
		return ""
	}
	return "kbs:///" + uri
}

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
		Initdata: owner.initdata, Login: owner.login, Resource: g.provisions.secrets.Get, Dir: imagesDir,
		Want: func(source string) (pull.Image, bool) {
			img, ok := e.Pulled(source)
			return pull.Image{Layers: img.Layers, Keys: img.Keys, Signed: img.SignedBy != ""}, ok
		},
	})
	g.mounts.Images = g.images
}
