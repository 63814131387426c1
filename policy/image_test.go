// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/base64"
	"slices"
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
		"a sign at first": "r.example/-a", "a sign at last": "r.example/a-", "a registry of two words": "r x.example/a",
		"only a registry": "r.example", "one too long": "r.example/" + strings.Repeat("a", maxRepository-9),
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
	for _, pull := range []string{
		"localhost/a", "r.example/" + strings.Repeat("a", maxRepository-10), "[::1]:5000/a_b/c.d",
	} {
		if err := with(func(c *Container) { c.Image.Pull = pull }).Validate(); err != nil {
			t.Errorf("%s: Validate() = %v", pull, err)
		}
	}
	for _, digest := range []string{someHash, "sha512:" + someHash, "sha256:" + someHash[1:], "sha256:", ""} {
		bad := with(func(c *Container) { c.Image.Manifest = digest })
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), ".image.manifest") {
			t.Errorf("manifest %q: Validate() = %v", digest, err)
		}
	}
}

// TestContainersOfOneImage: what the guest pulls once has one list of layers and keys; images of the host's are apart.
func TestContainersOfOneImage(t *testing.T) {
	other, key := []string{strings.Repeat("0", 64)}, "kbs:///default/key/a"
	for what, tc := range map[string]struct {
		first, second func(*Image)
		bad           bool
	}{
		"the same": {func(i *Image) { i.Pull = "r.example/a" }, func(i *Image) { i.Pull = "r.example/a" }, false},
		"other layers": {
			func(i *Image) { i.Pull = "r.example/a" }, func(i *Image) { i.Pull, i.Layers = "r.example/a", other }, true,
		},
		"other keys": {
			func(i *Image) { i.Pull = "r.example/a" }, func(i *Image) { i.Pull, i.Keys = "r.example/a", []string{key} }, true,
		},
		"another repository": {
			func(i *Image) { i.Pull = "r.example/a" }, func(i *Image) { i.Pull, i.Layers = "r.example/b", other }, false,
		},
		"the host's": {func(*Image) {}, func(i *Image) { i.Layers = other }, false},
	} {
		p := sample()
		second := p.Containers[0]
		second.Name = "second"
		tc.first(&p.Containers[0].Image)
		tc.second(&second.Image)
		p.Containers = append(p.Containers, second)
		err := p.Validate()
		if (err != nil) != tc.bad || tc.bad && !strings.Contains(err.Error(), "other layers, keys or signers") {
			t.Errorf("%s: Validate() = %v", what, err)
		}
	}
}

// keyOf is a key of so many bytes.
func keyOf(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }

// signing is sample with an image that the guest pulls and that a key signs.
func signing() *Policy {
	p := sample()
	i := &p.Containers[0].Image
	i.Pull, i.SignedBy, i.Tag, i.MinVersion = "r.example/app", "a2V5", "stable-1", "1.4.0"
	return p
}

// pulling is signing with a second image, which is encrypted.
func pulling() *Policy {
	p := signing()
	second := p.Containers[0]
	second.Name, second.Image = "second", Image{
		Manifest: "sha256:" + someHash, Layers: []string{someHash}, Pull: "localhost/other",
		Keys: []string{"kbs:///default/key/a"},
	}
	p.Containers = append(p.Containers, second)
	return p
}

func TestSignedImages(t *testing.T) {
	with := func(change func(*Image)) *Policy {
		p := signing()
		change(&p.Containers[0].Image)
		return p
	}
	b, err := Encode(with(func(*Image) {}))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := Load(b); err != nil || p.Containers[0].Image.SignedBy != "a2V5" {
		t.Errorf("Load() = %v", err)
	}
	for what, c := range map[string]struct {
		change func(*Image)
		want   string
	}{
		"no key":         {func(i *Image) { i.SignedBy = "" }, ".image.signedBy: is missing"},
		"a tag alone":    {func(i *Image) { i.SignedBy, i.MinVersion = "", "" }, ".image.signedBy: is missing"},
		"a version":      {func(i *Image) { i.SignedBy, i.Tag = "", "" }, ".image.signedBy: is missing"},
		"a long tag":     {func(i *Image) { i.Tag = strings.Repeat("a", 129) }, ".image.tag"},
		"a key too long": {func(i *Image) { i.SignedBy = keyOf(maxPublicKey + 1) }, ".image.signedBy: is not base64"},
		"no tag":         {func(i *Image) { i.Tag = "" }, ".image.tag"},
		"a path":         {func(i *Image) { i.Tag = "a/b" }, ".image.tag"},
		"a digest":       {func(i *Image) { i.Tag = "sha256:0" }, ".image.tag"},
		"a dot in front": {func(i *Image) { i.Tag = ".a" }, ".image.tag"},
		"no pull":        {func(i *Image) { i.Pull = "" }, ".image.signedBy: is for an image that the guest pulls"},
		"PEM":            {func(i *Image) { i.SignedBy = "-----BEGIN" }, ".image.signedBy: is not base64"},
		"a long key":     {func(i *Image) { i.SignedBy = strings.Repeat("AAAA", 1000) }, ".image.signedBy: is not base64"},
		"no version":     {func(i *Image) { i.MinVersion = "latest" }, ".image.minVersion"},
		"a pre-release":  {func(i *Image) { i.MinVersion = "1.0-rc1" }, ".image.minVersion"},
	} {
		if err := with(c.change).Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Validate() = %v, want %q", what, err, c.want)
		}
	}
	for what, change := range map[string]func(*Image){
		"no version":      func(i *Image) { i.MinVersion = "" },
		"the longest tag": func(i *Image) { i.Tag = strings.Repeat("a", 128) },
		"the longest key": func(i *Image) { i.SignedBy = keyOf(maxPublicKey) },
	} {
		if err := with(change).Validate(); err != nil {
			t.Errorf("%s: Validate() = %v", what, err)
		}
	}
	for what, change := range map[string]func(*Image){
		"key": func(i *Image) { i.SignedBy = "b3RoZXI=" }, "tag": func(i *Image) { i.Tag = "x" },
		"version": func(i *Image) { i.MinVersion = "2" },
	} {
		p := with(func(*Image) {})
		second := p.Containers[0]
		second.Name = "second"
		change(&second.Image)
		p.Containers = append(p.Containers, second)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "than the same image of another container") {
			t.Errorf("another %s for one image: Validate() = %v", what, err)
		}
	}
}

func TestVersionsOfImages(t *testing.T) {
	for i, list := range [][]string{{"0"}, {"1", "v1", "1.0.0"}, {"1.0.1"}, {"1.4", "1.4.0"}, {"1.10"}, {"2"}} {
		for _, v := range list {
			if got := ImageVersion(v); slices.Compare(got, ImageVersion(list[0])) != 0 || got == nil {
				t.Errorf("%s = %v", v, got)
			}
			if i > 0 && slices.Compare(ImageVersion("0.9.99"), ImageVersion(v)) >= 0 {
				t.Errorf("%s is older than 0.9.99", v)
			}
		}
	}
	if slices.Compare(ImageVersion("1.4"), ImageVersion("1.10")) >= 0 {
		t.Error("1.10 is older than 1.4")
	}
	for _, bad := range []string{
		"", "v", "x", "1.", ".1", "1..2", "-1", "+1", "1.4-rc1", "1 ", "99999999999999999999", "1.2.3.4.5.6.7.8.9",
	} {
		if got := ImageVersion(bad); got != nil {
			t.Errorf("ImageVersion(%q) = %v", bad, got)
		}
	}
}
