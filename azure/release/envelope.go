// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package release

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// ContentType is that of a policy in a key.
const ContentType = "application/json; charset=utf-8"

// Envelope is how a key holds its policy: release_policy of the service's JSON.
type Envelope struct {
	ContentType string `json:"contentType,omitempty"`
	Data        string `json:"data"` // base64url without padding
	Immutable   bool   `json:"immutable,omitempty"`
}

// Seal puts a policy into the form in which a key is imported.
func Seal(p *Policy, immutable bool) (Envelope, error) {
	b, err := json.Marshal(p)
	return Envelope{ContentType, base64.RawURLEncoding.EncodeToString(b), immutable}, err
}

// Open reads the policy.
func (e Envelope) Open() (*Policy, error) {
	b, err := Base64(e.Data)
	if err != nil {
		return nil, fmt.Errorf("data of the release policy: %w", err)
	}
	return Parse(b)
}

// Base64 decodes base64url with or without padding.
func Base64(s string) ([]byte, error) {
	return base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(s, "="))
}

// Read reads a policy in each form in which people have it: the policy, its envelope, or a key with it as the service
// or the command az shows one. It returns the envelope's immutable.
func Read(b []byte) (*Policy, bool, error) {
	if len(b) > 2*MaxPolicy {
		return nil, false, fmt.Errorf("the file has more than %d bytes", 2*MaxPolicy)
	}
	type envelope struct {
		Envelope
		Encoded string `json:"encodedPolicy"` // the command az
	}
	var file struct {
		envelope
		Key struct {
			Policy *envelope `json:"release_policy"`
		} `json:"key"`
		Policy *envelope `json:"release_policy"`
		AZ     *envelope `json:"releasePolicy"`
	}
	if json.Unmarshal(b, &file) != nil {
		p, err := Parse(b)
		return p, false, err
	}
	for _, e := range []*envelope{&file.envelope, file.Policy, file.AZ, file.Key.Policy} {
		if e == nil || e.Data == "" && e.Encoded == "" {
			continue
		}
		if e.Data == "" {
			e.Data = e.Encoded
		}
		p, err := e.Open()
		return p, e.Immutable, err
	}
	p, err := Parse(b)
	return p, false, err
}
