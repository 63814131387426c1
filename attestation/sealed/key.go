// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/internal/strictjson"
)

const (
	coordinate = 32 // bytes of a coordinate of P-256
	maxKey     = 4096
)

// jwk is a key of P-256 in the members that CoCo's tool writes.
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	Alg string `json:"alg"`
	Kid string `json:"kid,omitempty"`
	X   string `json:"x"`
	Y   string `json:"y"`
	D   string `json:"d,omitempty"`
}

// NewKey makes a signer's key and returns both halves as JWK.
func NewKey(kid string) (private, public []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		return nil, nil, err
	}
	d, err := k.Bytes()
	if err != nil {
		return nil, nil, err
	}
	j := jwk{
		Kty: "EC", Crv: "P-256", Alg: algorithm, Kid: kid,
		X: b64url.EncodeToString(point[1 : 1+coordinate]), Y: b64url.EncodeToString(point[1+coordinate:]),
	}
	if public, err = json.Marshal(j); err != nil {
		return nil, nil, err
	}
	j.D = b64url.EncodeToString(d)
	private, err = json.Marshal(j)
	return private, public, err
}

// ParsePublicKey reads the JWK of a signer's public key. A private key is refused: it does not belong where guests
// look.
func ParsePublicKey(b []byte) (*ecdsa.PublicKey, error) {
	m, key, err := parseKey(b)
	if err == nil && m["d"] != nil {
		return nil, errors.New("it is a private key (member d); guests get the public one")
	}
	return key, err
}

// PublicJWK has the members of a signer's public key that others write down: its kid, "" if there is none, and the
// coordinates as the JWK has them.
type PublicJWK struct{ Kid, X, Y string }

// ReadPublicJWK reads these members of a JWK that ParsePublicKey takes.
func ReadPublicJWK(b []byte) (PublicJWK, error) {
	if _, err := ParsePublicKey(b); err != nil {
		return PublicJWK{}, err
	}
	var k jwk
	err := json.Unmarshal(b, &k)
	return PublicJWK{k.Kid, k.X, k.Y}, err
}

// ParsePrivateKey reads the JWK of a signer's private key, and its kid if it has one.
func ParsePrivateKey(b []byte) (key *ecdsa.PrivateKey, kid string, err error) {
	m, public, err := parseKey(b)
	if err != nil {
		return nil, "", err
	}
	d, err := number(m, "d")
	if err != nil {
		return nil, "", err
	}
	key, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		return nil, "", errors.New("d is no private key of P-256")
	}
	if !key.PublicKey.Equal(public) {
		return nil, "", errors.New("x and y are not the public half of d")
	}
	if m["kid"] != nil {
		err = m.Text("kid", &kid)
	}
	return key, kid, err
}

// parseKey reads the public half of a JWK. Members that describe a key further are read over, if what they say fits.
func parseKey(b []byte) (strictjson.Members, *ecdsa.PublicKey, error) {
	if len(b) > maxKey {
		return nil, nil, fmt.Errorf("the key has more than %d bytes", maxKey)
	}
	m, err := strictjson.Only(b, "kty", "crv", "alg", "kid", "use", "key_ops", "x", "y", "d")
	if err != nil {
		return nil, nil, fmt.Errorf("no JWK of a key of P-256: %w", err)
	}
	for name, want := range map[string]string{"kty": "EC", "crv": "P-256", "alg": algorithm, "use": "sig"} {
		var got string
		if m[name] == nil && (name == "alg" || name == "use") {
			continue
		}
		if err := m.Text(name, &got); err != nil {
			return nil, nil, err
		}
		if got != want {
			return nil, nil, fmt.Errorf("%s is %.20q instead of %s", name, got, want)
		}
	}
	x, errX := number(m, "x")
	y, errY := number(m, "y")
	if err := errors.Join(errX, errY); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, nil, errors.New("x and y are no point of P-256")
	}
	return m, key, nil
}

// number reads a member of 32 bytes in base64url.
func number(m strictjson.Members, name string) ([]byte, error) {
	var text string
	if err := m.Text(name, &text); err != nil {
		return nil, err
	}
	b, err := b64url.DecodeString(text)
	if err != nil || len(b) != coordinate {
		return nil, fmt.Errorf("%s is not %d bytes in base64url", name, coordinate)
	}
	return b, nil
}
