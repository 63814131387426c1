// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/internal/strictjson"
)

const (
	// PayloadType is the media type of a payload in a registry.
	PayloadType = "application/vnd.dev.cosign.simplesigning.v1+json"
	// SignatureAnnotation names the annotation of a payload's descriptor that has the signature in base64.
	SignatureAnnotation = "dev.cosignproject.cosign/signature"

	payloadKind = "cosign container image signature"
)

// Tag is the tag of an image's repository under which its payloads lie.
func Tag(i Image) string { return strings.Replace(i.Digest, ":", "-", 1) + ".sig" }

type identity struct {
	Reference string `json:"docker-reference"`
}

type contents struct {
	Digest string `json:"docker-manifest-digest"`
}

type critical struct {
	Identity identity `json:"identity"`
	Image    contents `json:"image"`
	Type     string   `json:"type"`
}

type payload struct {
	Critical critical       `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// Payload writes the payload of a signature.
func Payload(i Image) ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	return json.Marshal(payload{Critical: critical{identity{i.Repository}, contents{i.Digest}, payloadKind}})
}

// CheckPayload checks a payload and its signature against an image.
func CheckPayload(k Key, text, signature []byte, i Image) error {
	if len(text) > MaxStatement {
		return fmt.Errorf("the payload has %d bytes, more than %d", len(text), MaxStatement)
	}
	if err := k.verify(text, signature); err != nil {
		return err
	}
	repository, digest, err := parsePayload(text)
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	return i.same(repository, digest)
}

// parsePayload reads repository and digest of a payload. Members of "optional" are the signer's notes.
func parsePayload(text []byte) (repository, digest string, err error) {
	top, err := strictjson.Only(text, "critical", "optional")
	if err != nil {
		return "", "", err
	}
	c, err := strictjson.Only(top["critical"], "identity", "image", "type")
	if err != nil {
		return "", "", fmt.Errorf("critical: %w", err)
	}
	var kind string
	if err := c.Text("type", &kind); err != nil {
		return "", "", err
	}
	if kind != payloadKind {
		return "", "", fmt.Errorf("type %.60q: known is %q", kind, payloadKind)
	}
	id, err := strictjson.Only(c["identity"], "docker-reference")
	if err != nil {
		return "", "", fmt.Errorf("identity: %w", err)
	}
	if id["docker-reference"] != nil {
		if err := id.Text("docker-reference", &repository); err != nil {
			return "", "", err
		}
	}
	image, err := strictjson.Only(c["image"], "docker-manifest-digest")
	if err != nil {
		return "", "", fmt.Errorf("image: %w", err)
	}
	return repository, digest, image.Text("docker-manifest-digest", &digest)
}
