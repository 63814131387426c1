// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

func TestImagesThatTheGuestPulls(t *testing.T) {
	with := func(change func(*Container)) *Policy {
		p := sample()
		change(&p.Containers[0])
		return p
	}
	good := with(func(c *Container) {
		c.Image.Pull, c.Image.Keys = "registry.example:5000/team/app", []string{"kbs:///default/key/a"}
	})
	b, err := Encode(good)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Load(b)
	if err != nil {
		t.Fatal(err)
	}
	source := "registry.example:5000/team/app@" + p.Containers[0].Image.Manifest
	if img, ok := p.Pulled(source); !ok || img.Keys[0] != "kbs:///default/key/a" || !p.Pulls() {
		t.Errorf("Pulled(%s) = %+v, %v", source, img, ok)
	}
	for _, other := range []string{"", "x" + source, p.Containers[0].Image.Manifest} {
		if img, ok := p.Pulled(other); ok {
			t.Errorf("Pulled(%q) = %+v", other, img)
		}
	}
	if _, ok := sample().Pulled(""); ok || sample().Pulls() {
		t.Error("an image of the host's is pulled")
	}
	for what, pull := range map[string]string{
		"no registry": "team/app", "a tag": "r.example/app:1", "a digest": "r.example/app@sha256:0",
		"a scheme": "https://r.example/app", "a part without a name": "r.example/a//b", "a way up": "r.example/../b",
		"upper case": "r.example/App", "a blank": "r.example/a b", "long": "r.example/" + strings.Repeat("a", 300),
	} {
		bad := with(func(c *Container) { c.Image.Pull = pull })
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), ".image.pull") {
			t.Errorf("%s: Validate() = %v", what, err)
		}
	}
	for what, change := range map[string]func(*Container){
		"keys without a pull": func(c *Container) { c.Image.Keys = []string{"kbs:///default/key/a"} },
		"a key's path":        func(c *Container) { c.Image.Pull, c.Image.Keys = "r.example/a", []string{"default/key/a"} },
	} {
		if err := with(change).Validate(); err == nil || !strings.Contains(err.Error(), ".image.keys") {
			t.Errorf("%s: Validate() = %v", what, err)
		}
	}
	two := with(func(c *Container) { c.Image.Pull = "r.example/a" })
	second := two.Containers[0]
	second.Name = "second"
	second.Image.Layers = []string{strings.Repeat("0", 64)}
	two.Containers = append(two.Containers, second)
	if err := two.Validate(); err == nil || !strings.Contains(err.Error(), "other layers or keys") {
		t.Errorf("two lists of layers for one image: Validate() = %v", err)
	}
}
