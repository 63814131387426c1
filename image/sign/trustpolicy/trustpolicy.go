// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trustpolicy reads the policy.json of containers/image, which CoCo uses too: for each image, by its name, what
// has to be signed by which key.
//
// It reads the requirements reject, insecureAcceptAnything and sigstoreSigned, and refuses signedBy (GPG) and others by
// name when the file is read, not when an image asks for them. A sigstoreSigned without signedIdentity is refused too:
// CoCo's reader then compares no repository.
//
// Source: containers-policy.json(5).
package trustpolicy

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/internal/strictjson"
)

// MaxSize is the longest policy that is read, in bytes.
const MaxSize = 1 << 20

// Kind is a kind of requirement.
type Kind string

// Kinds of requirements.
const (
	Reject         Kind = "reject"
	AcceptAnything Kind = "insecureAcceptAnything"
	Signed         Kind = "sigstoreSigned"
)

// Requirement is one thing that an image has to fulfil. The zero Requirement is of no kind and is not fulfilled.
type Requirement struct {
	Kind Kind
	// KeyPath or KeyData has the key of kind Signed. The path may be a URI of scheme file or kbs.
	KeyPath string
	KeyData []byte
	// Repository is the one that statements have to name instead of the image's own repository: exactRepository. It is
	// empty for matchRepository.
	Repository string
}

// Policy is a policy. The zero Policy rejects all images.
type Policy struct {
	standard []Requirement
	docker   map[string][]Requirement // by scope
}

// Parse reads a policy.
func Parse(text []byte) (*Policy, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("the policy has %d bytes, more than %d", len(text), MaxSize)
	}
	top, err := strictjson.Only(text, "default", "transports")
	if err != nil {
		return nil, err
	}
	p := &Policy{docker: map[string][]Requirement{}}
	if p.standard, err = requirements(top["default"]); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	if top["transports"] == nil {
		return p, nil
	}
	transports, err := strictjson.Parse(top["transports"])
	if err != nil {
		return nil, fmt.Errorf("transports: %w", err)
	}
	for name, text := range transports {
		scopes, err := strictjson.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("transports: %.40q: %w", name, err)
		}
		for scope, text := range scopes {
			list, err := requirements(text)
			if err != nil {
				return nil, fmt.Errorf("transports: %.40q: %.200q: %w", name, scope, err)
			}
			if name == "docker" { // images of registries; other transports are archives and daemons
				p.docker[scope] = list
			}
		}
	}
	return p, nil
}

func requirements(text []byte) ([]Requirement, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(text, &list); err != nil || len(list) == 0 {
		return nil, errors.New("there is no list of requirements, or an empty one")
	}
	var out []Requirement
	for _, raw := range list {
		r, err := requirement(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func requirement(text []byte) (r Requirement, err error) {
	m, err := strictjson.Parse(text)
	if err != nil {
		return r, err
	}
	var kind string
	if err := m.Text("type", &kind); err != nil {
		return r, err
	}
	switch r.Kind = Kind(kind); r.Kind {
	case Reject, AcceptAnything:
		_, err = strictjson.Only(text, "type")
		return r, err
	case Signed:
		err = r.parseSigned(text)
		return r, err
	}
	if kind == "signedBy" {
		return r, errors.New("signedBy: signatures by GPG are not verified here; sign with cosign or coco image sign")
	}
	return r, fmt.Errorf("type %.40q: known are %s, %s and %s", kind, Reject, AcceptAnything, Signed)
}

func (r *Requirement) parseSigned(text []byte) error {
	m, err := strictjson.Only(text, "type", "keyPath", "keyData", "signedIdentity")
	if err != nil {
		return fmt.Errorf("%s: %w", Signed, err)
	}
	switch path, data := m["keyPath"] != nil, m["keyData"] != nil; {
	case path == data:
		return fmt.Errorf("%s: exactly one of keyPath and keyData is needed", Signed)
	case path:
		if err := m.Text("keyPath", &r.KeyPath); err != nil {
			return err
		}
	default:
		var b64 string
		if err := m.Text("keyData", &b64); err != nil {
			return err
		}
		if r.KeyData, err = base64.StdEncoding.DecodeString(b64); err != nil {
			return errors.New("keyData is not in base64")
		}
	}
	if m["signedIdentity"] == nil {
		return fmt.Errorf(`%s: no signedIdentity: a signature would hold for any repository; write {"type":"matchRepository"}`,
			Signed)
	}
	return r.parseIdentity(m["signedIdentity"])
}

func (r *Requirement) parseIdentity(text []byte) error {
	id, err := strictjson.Only(text, "type", "dockerRepository")
	if err != nil {
		return fmt.Errorf("signedIdentity: %w", err)
	}
	var kind string
	if err := id.Text("type", &kind); err != nil {
		return fmt.Errorf("signedIdentity: %w", err)
	}
	switch {
	case kind == "matchRepository" && id["dockerRepository"] == nil:
		return nil
	case kind == "exactRepository":
		if err := id.Text("dockerRepository", &r.Repository); err != nil || r.Repository == "" {
			return errors.New("signedIdentity: exactRepository needs dockerRepository")
		}
		return nil
	}
	return fmt.Errorf("signedIdentity %.40q: known are matchRepository and exactRepository", kind)
}

// For returns the requirements of an image, all of which have to be fulfilled: those of the longest scope that its name
// lies in. suffix is ":TAG" or "@DIGEST", as the image is named.
func (p *Policy) For(repository, suffix string) []Requirement {
	for _, scope := range scopes(repository, suffix) {
		if list, ok := p.docker[scope]; ok {
			return list
		}
	}
	if len(p.standard) == 0 {
		return []Requirement{{Kind: Reject}}
	}
	return p.standard
}

// scopes lists the scopes of an image, the longest first.
func scopes(repository, suffix string) []string {
	out := []string{repository + suffix, repository}
	for {
		slash := strings.LastIndexByte(repository, '/')
		if slash < 0 {
			break
		}
		repository = repository[:slash]
		out = append(out, repository)
	}
	host, _, _ := strings.Cut(repository, ":")
	for {
		_, rest, ok := strings.Cut(host, ".")
		if !ok {
			return append(out, "")
		}
		host = rest
		out = append(out, "*."+host)
	}
}
