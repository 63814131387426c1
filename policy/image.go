// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"
)

// maxRepository bounds the name of a repository with its registry.
const maxRepository = 255

func (p *problems) image(at string, i Image) {
	if d, ok := strings.CutPrefix(i.Manifest, "sha256:"); !ok || !isHash(d) {
		p.add(at+".manifest", "%s is not sha256: with 64 lower-case hexadecimal digits", clip(i.Manifest))
	}
	p.hashes(at+".layers", i.Layers)
	if i.Pull != "" && !isRepository(i.Pull) {
		p.add(at+".pull", "%s is no repository of the form registry.example/team/app, without a tag or digest", clip(i.Pull))
	}
	for _, k := range i.Keys {
		if !isResource(k) {
			p.add(at+".keys", "%s is no URI such as kbs:///repository/type/tag", clip(k))
		}
	}
	if len(i.Keys) > 0 && i.Pull == "" {
		p.add(at+".keys", "is for an image that the guest pulls, and pull is missing")
	}
}

// isRepository checks what the registry's client does not: that the text is one word which names a registry.
func isRepository(s string) bool {
	registry, name, ok := strings.Cut(s, "/")
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	return ok && len(s) <= maxRepository && strings.Trim(registry, letters+"ABCDEFGHIJKLMNOPQRSTUVWXYZ.-:[]") == "" &&
		(registry == "localhost" || strings.ContainsAny(registry, ".:")) &&
		strings.Trim(name, letters+"._-/") == "" &&
		!slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool {
			return part == "" || !strings.Contains(letters, part[:1]) || !strings.Contains(letters, part[len(part)-1:])
		})
}

// pulls checks that one image has one list of layers.
func (p *problems) pulls(list []Container) {
	known := map[string]*Image{}
	for i := range list {
		img := &list[i].Image
		source := img.Source()
		if source == "" {
			continue
		}
		if o := known[source]; o != nil && !(slices.Equal(o.Layers, img.Layers) && slices.Equal(o.Keys, img.Keys)) {
			p.add("containers["+list[i].Name+"].image", "has other layers or keys than the same image of another container")
		}
		known[source] = img
	}
}

// Pulled returns the image that a guest pulls from a source, as Image.Source writes it.
func (p *Policy) Pulled(source string) (Image, bool) {
	for i := range p.Containers {
		if img := p.Containers[i].Image; source != "" && img.Source() == source {
			return img, true
		}
	}
	return Image{}, false
}

// Pulls says whether the guest pulls an image.
func (p *Policy) Pulls() bool {
	return slices.ContainsFunc(p.Containers, func(c Container) bool { return c.Image.Pull != "" })
}
