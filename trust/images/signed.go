// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/image/sign"
	"github.com/coco-shim/coco/policy"
)

// maxStatements bounds the statements of each form that are looked at for one image.
const maxStatements = 32

// bundlePrefix begins the types of sigstore's bundles in all their versions.
const bundlePrefix = "application/vnd.dev.sigstore.bundle"

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations"`
	Platform     struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// listing is the part of a manifest or an index that counts.
type listing struct {
	Layers    []descriptor `json:"layers"`
	Manifests []descriptor `json:"manifests"`
}

// signed finds the image that the registry has under the policy's tag, and returns the digest of its manifest if the
// policy's key has signed it for this repository. The registry is asked for everything and believed in nothing: it can
// withhold a new image, and present any other that the key has signed for the repository. The version decides then.
func signed(ctx context.Context, reach registry.Config, img policy.Image) (string, error) {
	key, err := parseKey(img.SignedBy)
	if err != nil {
		return "", fmt.Errorf("the policy's key: %w", err)
	}
	repo, err := registry.Open(reach, img.Pull)
	if err != nil {
		return "", err
	}
	text, digest, err := repo.Tagged(ctx, img.Tag)
	if err != nil {
		return "", err
	}
	about := sign.Image{Repository: img.Pull, Digest: digest}
	if err := isSigned(ctx, repo, key, about); err != nil {
		return "", fmt.Errorf("tag %s of %s, %s: %w", img.Tag, img.Pull, digest, err)
	}
	var top listing
	if err := json.Unmarshal(text, &top); err != nil {
		return "", fmt.Errorf("tag %s of %s: %w", img.Tag, img.Pull, err)
	}
	if top.Manifests == nil {
		return digest, nil
	}
	return ofPlatform(top.Manifests, digest)
}

// parseKey reads a key as a policy has it.
func parseKey(text string) (sign.Key, error) {
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return sign.Key{}, err
	}
	return sign.ParseKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// ofPlatform returns the manifest of an index, which was signed, for this machine.
func ofPlatform(list []descriptor, index string) (string, error) {
	list = slices.DeleteFunc(list, func(d descriptor) bool {
		return d.Platform.OS != "linux" || d.Platform.Architecture != runtime.GOARCH
	})
	if len(list) != 1 {
		return "", fmt.Errorf("the index %s has %d images for linux/%s, not one", index, len(list), runtime.GOARCH)
	}
	return list[0].Digest, nil
}

// isSigned looks for a statement that holds, among the payloads and the bundles of an image.
func isSigned(ctx context.Context, repo *registry.Repository, key sign.Key, about sign.Image) error {
	ok, whyPayloads, err := payloads(ctx, repo, key, about)
	if err != nil || ok {
		return err
	}
	ok, whyBundles, err := bundles(ctx, repo, key, about)
	if err != nil || ok {
		return err
	}
	if why := append(whyPayloads, whyBundles...); len(why) > 0 {
		return fmt.Errorf("no signature holds: %w", errors.Join(why...))
	}
	return errors.New("the image has no signature")
}

// payloads looks at the payloads that lie under the tag of an image. why has the reasons of those that do not hold.
func payloads(ctx context.Context, repo *registry.Repository, key sign.Key, about sign.Image,
) (ok bool, why []error, err error) {
	text, _, err := repo.Tagged(ctx, sign.Tag(about))
	if registry.Missing(err) {
		return false, nil, nil
	}
	var m listing
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return false, nil, fmt.Errorf("signatures: %w", err)
	}
	for _, d := range m.Layers[:min(len(m.Layers), maxStatements)] {
		if d.MediaType != sign.PayloadType {
			continue
		}
		text, err := repo.Small(ctx, d.Digest, d.Size)
		if err != nil {
			return false, nil, fmt.Errorf("signature: %w", err)
		}
		signature, err := base64.StdEncoding.Strict().DecodeString(d.Annotations[sign.SignatureAnnotation])
		if err == nil {
			err = sign.CheckPayload(key, text, signature, about)
		}
		if err == nil {
			return true, nil, nil
		}
		why = append(why, fmt.Errorf("payload %s: %w", d.Digest, err))
	}
	return false, why, nil
}

// bundles looks at the bundles that refer to an image, likewise.
func bundles(ctx context.Context, repo *registry.Repository, key sign.Key, about sign.Image,
) (ok bool, why []error, err error) {
	text, err := repo.Referrers(ctx, about.Digest)
	if err != nil || text == nil {
		return false, nil, err
	}
	var index listing
	if err := json.Unmarshal(text, &index); err != nil {
		return false, nil, fmt.Errorf("referrers of %s: %w", about.Digest, err)
	}
	for _, d := range index.Manifests[:min(len(index.Manifests), maxStatements)] {
		text, err := repo.Manifest(ctx, d.Digest)
		if err != nil {
			return false, nil, fmt.Errorf("bundle: %w", err)
		}
		var m listing
		if json.Unmarshal(text, &m) != nil || len(m.Layers) != 1 || !strings.HasPrefix(m.Layers[0].MediaType, bundlePrefix) {
			continue // no bundle
		}
		if text, err = repo.Small(ctx, m.Layers[0].Digest, m.Layers[0].Size); err != nil {
			return false, nil, fmt.Errorf("bundle: %w", err)
		}
		if err = sign.CheckBundle(key, text, about); err == nil {
			return true, nil, nil
		}
		why = append(why, fmt.Errorf("bundle %s: %w", d.Digest, err))
	}
	return false, why, nil
}

// newEnough judges versions by the oldest that the policy allows; nil: any is allowed.
func newEnough(oldest string) func(string) error {
	if oldest == "" {
		return nil
	}
	return func(v string) error {
		got := policy.ImageVersion(v)
		if got == nil {
			return fmt.Errorf("its version (org.opencontainers.image.version) is %.60q, which is not of numbers with dots, and "+
				"the policy wants %s at least", v, oldest)
		}
		if slices.Compare(got, policy.ImageVersion(oldest)) < 0 {
			return fmt.Errorf("it has version %.60s, older than the policy's %s", v, oldest)
		}
		return nil
	}
}
