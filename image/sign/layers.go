// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/internal/strictjson"
)

// LayersPredicate is the type of our statement.
const LayersPredicate = "https://github.com/coco-shim/coco/layers/v1"

const (
	maxPlatforms = 64
	maxLayers    = 400 // as package image/resolve has
)

// Layers are the layers of an image for one platform.
type Layers struct {
	Platform string `json:"platform"` // such as "linux/amd64"
	// Manifest is the digest of the platform's manifest: that of the image, or one of its index.
	Manifest string `json:"manifest"`
	// Roots are dm-verity root hashes in hexadecimal, the lowest layer first.
	Roots []string `json:"roots"`
}

type layersPredicate struct {
	Images []Layers `json:"images"`
}

// LayerBundle signs a layer statement, and writes the bundle.
func LayerBundle(s Signer, i Image, images []Layers) ([]byte, error) {
	if err := checkLayers(images); err != nil {
		return nil, err
	}
	return newBundle(s, i, LayersPredicate, layersPredicate{images})
}

// CheckLayers checks a layer statement against an image, and returns the layers of the platform.
func CheckLayers(k Key, text []byte, i Image, platform string) (Layers, error) {
	predicate, err := openBundle(k, text, i, LayersPredicate)
	if err != nil {
		return Layers{}, err
	}
	images, err := parseLayers(predicate)
	if err != nil {
		return Layers{}, fmt.Errorf("layer statement: %w", err)
	}
	for _, l := range images {
		if l.Platform == platform {
			return l, nil
		}
	}
	return Layers{}, fmt.Errorf("the layer statement has no image for %s", platform)
}

func parseLayers(text []byte) ([]Layers, error) {
	p, err := strictjson.Only(text, "images")
	if err != nil {
		return nil, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(p["images"], &list); err != nil || len(list) > maxPlatforms {
		return nil, fmt.Errorf("images is no list of at most %d", maxPlatforms)
	}
	var out []Layers
	for _, raw := range list {
		m, err := strictjson.Only(raw, "platform", "manifest", "roots")
		if err != nil {
			return nil, err
		}
		var l Layers
		if err := errors.Join(m.Text("platform", &l.Platform), m.Text("manifest", &l.Manifest)); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(m["roots"], &l.Roots); err != nil {
			return nil, errors.New("roots is no list of strings")
		}
		out = append(out, l)
	}
	return out, checkLayers(out)
}

func checkLayers(images []Layers) error {
	if len(images) == 0 || len(images) > maxPlatforms {
		return fmt.Errorf("%d platforms: 1 to %d are taken", len(images), maxPlatforms)
	}
	seen := map[string]bool{}
	for _, l := range images {
		if l.Platform == "" || len(l.Platform) > 64 || seen[l.Platform] {
			return fmt.Errorf("platform %.70q is empty, too long or stands twice", l.Platform)
		}
		seen[l.Platform] = true
		if !digestForm.MatchString(l.Manifest) {
			return fmt.Errorf("%s: manifest %.80q is no digest", l.Platform, l.Manifest)
		}
		if len(l.Roots) > maxLayers {
			return fmt.Errorf("%s: %d layers, more than %d", l.Platform, len(l.Roots), maxLayers)
		}
		for _, r := range l.Roots {
			if !hashForm.MatchString(r) {
				return fmt.Errorf("%s: root hash %.80q is not 64 hexadecimal digits", l.Platform, r)
			}
		}
	}
	return nil
}
