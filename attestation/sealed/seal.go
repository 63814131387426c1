// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Signer signs sealed texts.
type Signer struct {
	Key *ecdsa.PrivateKey // of P-256
	Kid string            // by which guests find the public key
	// InsecureUnsigned writes the form without a signature; Key and Kid are then unused.
	InsecureUnsigned bool
}

// SealVault writes a text whose secret is a resource of the broker, named by its path or URI.
func (s Signer) SealVault(resource string) (string, error) {
	path, err := anyPath(resource)
	if err != nil {
		return "", err
	}
	return s.sign(vaultPayload{Version: version, Type: Vault, Name: uriOf(path), Provider: provider})
}

// SealEnvelope writes a text that holds the secret, encrypted. wrapping is the content of the resource, 32 bytes.
func (s Signer) SealEnvelope(resource string, wrapping, secret []byte) (string, error) {
	path, err := anyPath(resource)
	if err != nil {
		return "", err
	}
	p := envelopePayload{
		Version: version, Type: Envelope, KeyID: uriOf(path), WrapType: wrapGCM, Provider: provider,
		IV: random(nonceSize),
	}
	key := random(keySize)
	defer clear(key)
	p.Data, err = gcm(key, func(c cipher.AEAD) ([]byte, error) { return c.Seal(nil, p.IV, secret, nil), nil })
	if err != nil {
		return "", err
	}
	nonce := random(nonceSize)
	p.Key, err = gcm(wrapping, func(c cipher.AEAD) ([]byte, error) { return c.Seal(nonce, nonce, key, nil), nil })
	if err != nil {
		return "", fmt.Errorf("wrap the envelope's key: %w", err)
	}
	return s.sign(p)
}

// anyPath takes a path or a URI.
func anyPath(resource string) (string, error) {
	if path, err := resourcePath(resource); err == nil {
		return path, nil
	}
	return resourcePath(uriOf(resource))
}

// random returns bytes from the system's generator, which does not fail.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func (s Signer) sign(payload any) (string, error) {
	body, err := encode(payload)
	if err != nil {
		return "", err
	}
	text := Prefix + noHeader + "." + body + "." + noSignature
	if !s.InsecureUnsigned {
		if s.Key == nil || s.Kid == "" {
			return "", errors.New("a sealed secret needs the signer's key and its kid")
		}
		head, err := encode(header{algorithm, s.Kid})
		if err != nil {
			return "", err
		}
		digest := sha256.Sum256([]byte(head + "." + body))
		r, t, err := ecdsa.Sign(rand.Reader, s.Key, digest[:])
		if err != nil {
			return "", fmt.Errorf("sign: %w", err)
		}
		var signature [64]byte
		r.FillBytes(signature[:32])
		t.FillBytes(signature[32:])
		text = Prefix + head + "." + body + "." + b64url.EncodeToString(signature[:])
	}
	if _, err := Parse(text); err != nil { // no guest would take it
		return "", err
	}
	return text, nil
}
