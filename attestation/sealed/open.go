// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

const (
	keySize   = 32 // AES-256
	nonceSize = 12
	tagSize   = 16
)

// Opener turns sealed texts into secrets. The zero Opener opens nothing.
type Opener struct {
	// Key is the one key whose signatures are accepted, whatever kid a text names. Without it Signers counts.
	Key *ecdsa.PublicKey
	// Signers are the kids whose signatures are accepted, exactly as texts write them.
	Signers []string
	// Keys has the JWKs of signers whose kid is no URI of the broker's.
	Keys map[string][]byte
	// Fetch gets a resource of the broker by its path, "repository/type/tag". It is called for the key of a signer whose
	// kid is a URI, and for secrets.
	Fetch func(ctx context.Context, path string) ([]byte, error)
	// InsecureUnsigned accepts the form without a signature: anybody who can change the text then chooses among the
	// resources that are allowed at its place.
	InsecureUnsigned bool
}

// Open returns the secret of a text. allowed is the path, or the URI, of the one resource that may be opened at the
// place where the text was found. Errors are of type *Error.
func (o *Opener) Open(ctx context.Context, text, allowed string) ([]byte, error) {
	s, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if err := o.Verify(ctx, s); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(allowed, "kbs://") {
		allowed = uriOf(allowed)
	}
	want, err := resourcePath(allowed)
	if err != nil {
		return nil, &Error{Moved, s.Resource, fmt.Errorf("what is allowed here: %w", err)}
	}
	if s.Resource != want {
		return nil, &Error{Moved, s.Resource, fmt.Errorf("only %s may be opened here", uriOf(want))}
	}
	value, err := o.fetch(ctx, s.Resource)
	if err != nil || s.Kind == Vault {
		return value, err
	}
	return s.decrypt(value)
}

// Verify checks the signature of a text. Errors are of type *Error.
func (o *Opener) Verify(ctx context.Context, s *Secret) error {
	if s.Unsigned() {
		if o.InsecureUnsigned {
			return nil
		}
		return &Error{NoSigner, s.Resource, errors.New("it is not signed")}
	}
	if o.Key != nil {
		return s.verify(o.Key)
	}
	if !slices.Contains(o.Signers, s.Kid) {
		return &Error{NoSigner, s.Resource, fmt.Errorf("its signer %.200q is not one of %q", s.Kid, o.Signers)}
	}
	key, err := o.key(ctx, s)
	if err != nil {
		return err
	}
	return s.verify(key)
}

// key returns the signer's key.
func (o *Opener) key(ctx context.Context, s *Secret) (*ecdsa.PublicKey, error) {
	text, ok := o.Keys[s.Kid]
	if path, err := resourcePath(s.Kid); err == nil {
		// The broker decides alone about keys that are its own.
		if text, err = o.fetch(ctx, path); err != nil {
			return nil, fmt.Errorf("the key of the signer: %w", err)
		}
	} else if !ok {
		return nil, &Error{NoKey, s.Resource, fmt.Errorf("there is no key of the signer %.200q", s.Kid)}
	}
	key, err := ParsePublicKey(text)
	if err != nil {
		return nil, &Error{NoKey, s.Resource, fmt.Errorf("key of the signer %.200q: %w", s.Kid, err)}
	}
	return key, nil
}

func (o *Opener) fetch(ctx context.Context, path string) ([]byte, error) {
	if o.Fetch == nil {
		return nil, &Error{Fetch, path, errors.New("there is no key broker to ask")}
	}
	b, err := o.Fetch(ctx, path)
	if err == nil && len(b) == 0 {
		err = errors.New("the resource is empty")
	}
	if err != nil {
		return nil, &Error{Fetch, path, err}
	}
	return b, nil
}

// verify checks the signature: RFC 7518, section 3.4.
func (s *Secret) verify(key *ecdsa.PublicKey) error {
	digest := sha256.Sum256(s.signed)
	r, t := new(big.Int).SetBytes(s.signature[:32]), new(big.Int).SetBytes(s.signature[32:])
	if !ecdsa.Verify(key, digest[:], r, t) {
		return &Error{Signature, s.Resource, fmt.Errorf("the signature is not that of %.200q", s.Kid)}
	}
	return nil
}

// decrypt opens an envelope with the resource that it names. Additional data is empty in both steps.
func (s *Secret) decrypt(wrapping []byte) ([]byte, error) {
	key, err := gcm(wrapping, func(c cipher.AEAD) ([]byte, error) {
		return c.Open(nil, s.key[:nonceSize], s.key[nonceSize:], nil)
	})
	if err != nil {
		return nil, &Error{Decrypt, s.Resource, fmt.Errorf("encrypted_key: %w", err)}
	}
	defer clear(key)
	secret, err := gcm(key, func(c cipher.AEAD) ([]byte, error) { return c.Open(nil, s.iv, s.data, nil) })
	if err != nil {
		return nil, &Error{Decrypt, s.Resource, fmt.Errorf("encrypted_data: %w", err)}
	}
	return secret, nil
}

// gcm runs an operation of AES-256-GCM.
func gcm(key []byte, do func(cipher.AEAD) ([]byte, error)) ([]byte, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("its key has %d bytes instead of %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	c, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	out, err := do(c)
	if err != nil {
		return nil, errors.New("it is not encrypted with this key, or was changed")
	}
	return out, nil
}
