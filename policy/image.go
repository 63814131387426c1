// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
)

// maxRepository bounds the name of a repository with its registry.
const maxRepository = 255

// maxPublicKey is more than an RSA key of 8192 bits has.
const maxPublicKey = 2048

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
	p.signedImage(at, i)
}

// signedImage checks the members about a signature. coco-trust reads the key, and refuses kinds that it does not know.
func (p *problems) signedImage(at string, i Image) {
	if i.SignedBy == "" {
		if i.Tag != "" || i.MinVersion != "" {
			p.add(at+".signedBy", "is missing, and tag and minVersion are for signed images")
		}
		return
	}
	if i.Pull == "" {
		p.add(at+".signedBy", "is for an image that the guest pulls, and pull is missing")
	}
	if der, err := base64.StdEncoding.Strict().DecodeString(i.SignedBy); err != nil || len(der) > maxPublicKey {
		p.add(at+".signedBy", "is not base64 of a public key of at most %d bytes", maxPublicKey)
	}
	if !isTag(i.Tag) {
		p.add(at+".tag", "%s is no tag, under which the registry has the image", clip(i.Tag))
	}
	if i.MinVersion != "" && ImageVersion(i.MinVersion) == nil {
		p.add(at+".minVersion", "%s is not of numbers with dots, such as 1.4.0", clip(i.MinVersion))
	}
}

func isTag(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	return s != "" && len(s) <= 128 && strings.Contains(letters, s[:1]) && strings.Trim(s, letters+".-") == ""
}

// ImageVersion reads the version of an image: up to eight numbers with dots, a "v" in front or not. nil: it is none.
// The result is compared by slices.Compare; zeros at the end are left out.
func ImageVersion(s string) (out []uint64) {
	for part := range strings.SplitSeq(strings.TrimPrefix(s, "v"), ".") {
		n, err := strconv.ParseUint(part, 10, 63)
		if err != nil || len(out) == 8 {
			return nil
		}
		out = append(out, n)
	}
	for len(out) > 1 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// isRepository checks what the registry's client does not: that the text is one word which names a registry.
func isRepository(s string) bool {
	registry, name, _ := strings.Cut(s, "/") // without a slash the name has a part that is ""
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	return len(s) <= maxRepository && strings.Trim(registry, letters+"ABCDEFGHIJKLMNOPQRSTUVWXYZ.-:[]") == "" &&
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
		if o := known[source]; o != nil && !o.same(img) {
			p.add("containers["+list[i].Name+"].image",
				"has other layers, keys or signers than the same image of another container")
		}
		known[source] = img
	}
}

// same compares what a guest needs of an image.
func (i *Image) same(o *Image) bool {
	return slices.Equal(i.Layers, o.Layers) && slices.Equal(i.Keys, o.Keys) && i.SignedBy == o.SignedBy &&
		i.Tag == o.Tag && i.MinVersion == o.MinVersion
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
