// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sealed reads and writes CoCo's sealed secrets: texts that stand where a secret is wanted, in a variable or a
// file of a Kubernetes Secret, and that only a guest can turn into the secret.
//
//	sealed.HEADER.PAYLOAD.SIGNATURE    each part in base64url without padding
//
// HEADER and SIGNATURE are those of a JWS with ES256. The header names the signer's key (kid). The payload is of one of
// two kinds. A vault names a resource of the key broker, and the resource is the secret. An envelope has the secret in
// it, encrypted with a key of its own, and that key encrypted with a resource of the broker.
//
// A guest opens a text in this order: Parse, which believes nothing; the signature, by a key that the host cannot
// choose; the resource, which has to be the one that the pod's policy allows at this place; then the broker. The third
// step is what keeps a host from moving a sealed text to a container that prints it.
//
// The package does no I/O. Its caller gives a function that fetches resources; package kbs/client has one.
//
// Sources: confidential-containers/guest-components, docs/SEALED_SECRET.md and crate confidential-data-hub; RFC 7515
// (JWS), RFC 7517 and 7518 (JWK, ES256).
package sealed

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/internal/strictjson"
)

const (
	// Prefix begins each sealed text.
	Prefix = "sealed."
	// MaxText is the longest text that is read, in bytes: that of a Kubernetes Secret.
	MaxText = 1 << 20

	version   = "0.1.0"
	algorithm = "ES256"
	provider  = "kbs"
	wrapGCM   = "A256GCM"

	// The unsigned form has these words for header and signature.
	noHeader    = "fakejwsheader"
	noSignature = "fakesignature"

	maxHeader = 4096
	maxKid    = 512
)

var (
	b64url = base64.RawURLEncoding.Strict()
	b64std = base64.StdEncoding.Strict()
)

// Kind is a kind of payload.
type Kind string

// Kinds of payloads.
const (
	Vault    Kind = "vault"
	Envelope Kind = "envelope"
)

// Secret is the content of a sealed text, not yet trusted: Parse verifies no signature.
type Secret struct {
	Kind Kind
	// Kid names the signer's key: a resource of the broker as kbs:///repository/type/tag, or a name of the guest's own.
	// It is empty in the unsigned form.
	Kid string
	// Resource is the path of the resource that is the secret, or decrypts the envelope's key: "repository/type/tag".
	Resource string

	signed    []byte // the bytes that the signature covers
	signature []byte // r and s, 32 bytes each
	// Of an envelope: the key of data as nonce, ciphertext and tag; nonce and ciphertext with tag of the secret.
	key, iv, data []byte
}

// Unsigned tells whether the text has no signature.
func (s *Secret) Unsigned() bool { return s.signature == nil }

// Parse reads a sealed text. Its errors are of type *Error with code Malformed, Algorithm or Provider, and hold nothing
// of an envelope's content.
func Parse(text string) (*Secret, error) {
	s, err := parse(text)
	if err != nil {
		return nil, coded(Malformed, "", err)
	}
	return s, nil
}

func parse(text string) (*Secret, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("the text has %d bytes, at most %d are read", len(text), MaxText)
	}
	rest, ok := strings.CutPrefix(text, Prefix)
	parts := strings.SplitN(rest, ".", 4)
	if !ok || len(parts) != 3 {
		return nil, errors.New("it is not sealed.HEADER.PAYLOAD.SIGNATURE")
	}
	s := &Secret{signed: []byte(parts[0] + "." + parts[1])}
	if parts[0] != noHeader || parts[2] != noSignature {
		if err := s.parseHeader(parts[0]); err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		var err error
		if s.signature, err = b64url.DecodeString(parts[2]); err != nil || len(s.signature) != 64 {
			return nil, errors.New("the signature is not 64 bytes in base64url")
		}
	}
	payload, err := b64url.DecodeString(parts[1])
	if err != nil {
		return nil, errors.New("the payload is not in base64url without padding")
	}
	if err := s.parsePayload(payload); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return s, nil
}

// parseHeader reads the JWS header. Members that would bring a key of the sender's choice are unknown ones.
func (s *Secret) parseHeader(part string) error {
	text, err := b64url.DecodeString(part)
	if err != nil || len(text) > maxHeader {
		return fmt.Errorf("not base64url without padding, or more than %d bytes", maxHeader)
	}
	m, err := strictjson.Only(text, "alg", "kid", "typ")
	if err != nil {
		return err
	}
	var alg, typ string
	if m["typ"] != nil {
		if err := m.Text("typ", &typ); err != nil {
			return err
		}
	}
	if err := errors.Join(m.Text("alg", &alg), m.Text("kid", &s.Kid)); err != nil {
		return err
	}
	if alg != algorithm {
		return coded(Algorithm, "", fmt.Errorf("alg %.20q: only %s is accepted", alg, algorithm))
	}
	if s.Kid == "" || len(s.Kid) > maxKid {
		return fmt.Errorf("kid is empty or has more than %d bytes", maxKid)
	}
	return nil
}

func (s *Secret) parsePayload(b []byte) error {
	m, err := strictjson.Parse(b)
	if err != nil {
		return err
	}
	var v, kind, by string
	if err := errors.Join(m.Text("version", &v), m.Text("type", &kind), m.Text("provider", &by)); err != nil {
		return err
	}
	if v != version {
		return fmt.Errorf("version %.20q: known is %s", v, version)
	}
	s.Kind = Kind(kind)
	names := []string{"version", "type", "provider", "provider_settings", "annotations"}
	switch s.Kind {
	case Vault:
		names = append(names, "name")
	case Envelope:
		names = append(names, "key_id", "encrypted_key", "encrypted_data", "wrap_type", "iv")
	default:
		return fmt.Errorf("type %.20q: known are %s and %s", kind, Vault, Envelope)
	}
	if by != provider {
		return coded(Provider, "", fmt.Errorf("provider %.20q: only %s is known here", by, provider))
	}
	if m, err = strictjson.Only(b, names...); err != nil {
		return err
	}
	// Both would change how a provider is asked. Provider kbs has neither settings nor annotations.
	for _, name := range []string{"provider_settings", "annotations"} {
		if _, err := strictjson.Only(m[name]); err != nil {
			return fmt.Errorf("%s: provider %s takes an empty object only: %w", name, provider, err)
		}
	}
	if s.Kind == Vault {
		s.Resource, err = resource(m, "name")
		return err
	}
	return s.parseEnvelope(m)
}

func (s *Secret) parseEnvelope(m strictjson.Members) (err error) {
	var wrap string
	if err := m.Text("wrap_type", &wrap); err != nil {
		return err
	}
	if wrap != wrapGCM {
		return fmt.Errorf("wrap_type %.20q: known is %s", wrap, wrapGCM)
	}
	if s.Resource, err = resource(m, "key_id"); err != nil {
		return err
	}
	for name, to := range map[string]*[]byte{"encrypted_key": &s.key, "encrypted_data": &s.data, "iv": &s.iv} {
		var text string
		if err := m.Text(name, &text); err != nil {
			return err
		}
		if *to, err = b64std.DecodeString(text); err != nil {
			return fmt.Errorf("%s is not in base64", name)
		}
	}
	if len(s.iv) != nonceSize || len(s.key) != nonceSize+keySize+tagSize || len(s.data) < tagSize {
		return errors.New("iv, encrypted_key or encrypted_data does not have its length")
	}
	return nil
}

// resource reads a member that is the URI of a resource, and returns its path.
func resource(m strictjson.Members, name string) (string, error) {
	var uri string
	if err := m.Text(name, &uri); err != nil {
		return "", err
	}
	path, err := resourcePath(uri)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return path, nil
}

// resourcePath returns the path of a URI kbs://…/repository/type/tag.
func resourcePath(uri string) (string, error) {
	if !strings.HasPrefix(uri, "kbs://") {
		return "", fmt.Errorf("%.80q is no URI such as kbs:///repository/type/tag", uri)
	}
	return kbs.ParsePath(uri)
}

// uriOf is the URI of a path.
func uriOf(path string) string { return "kbs:///" + path }

// vaultPayload and envelopePayload are the payloads in the order in which CoCo's tool writes members.
type vaultPayload struct {
	Version     string   `json:"version"`
	Type        Kind     `json:"type"`
	Name        string   `json:"name"`
	Provider    string   `json:"provider"`
	Settings    struct{} `json:"provider_settings"`
	Annotations struct{} `json:"annotations"`
}

type envelopePayload struct {
	Version     string   `json:"version"`
	Type        Kind     `json:"type"`
	KeyID       string   `json:"key_id"`
	Key         []byte   `json:"encrypted_key"`
	Data        []byte   `json:"encrypted_data"`
	WrapType    string   `json:"wrap_type"`
	IV          []byte   `json:"iv"`
	Provider    string   `json:"provider"`
	Settings    struct{} `json:"provider_settings"`
	Annotations struct{} `json:"annotations"`
}

// header is the header in the order in which CoCo's tool writes members.
type header struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
}

// encode writes a part of a sealed text.
func encode(v any) (string, error) {
	b, err := json.Marshal(v)
	return b64url.EncodeToString(b), err
}
