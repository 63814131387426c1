// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Sizes of RSA keys, in bits.
const (
	minRSA = 2048
	maxRSA = 8192
)

// Key is a public key. The zero Key verifies nothing.
type Key struct{ public crypto.PublicKey }

// ParseKey reads a public key: P-256, P-384, RSA of 2048 to 8192 bits or Ed25519, as one block "PUBLIC KEY" of PEM.
func ParseKey(text []byte) (Key, error) {
	block, err := onlyBlock(text)
	if err != nil {
		return Key{}, err
	}
	if block.Type != "PUBLIC KEY" {
		return Key{}, fmt.Errorf("a block %q instead of PUBLIC KEY", block.Type)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, errors.New("the block is no public key of a known kind")
	}
	return Key{public}, checkKind(public)
}

func onlyBlock(text []byte) (*pem.Block, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("more than one PEM block")
	}
	return block, nil
}

// checkKind refuses keys that are weak or not known here.
func checkKind(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("curve %s: known are P-256 and P-384", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("an RSA key of %d bits: %d to %d are taken", n, minRSA, maxRSA)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("a key of type %T: known are P-256, P-384, RSA and Ed25519", public)
}

// verify checks a signature: ECDSA over SHA-256, on P-384 also over SHA-384; RSA as PKCS #1 v1.5 over SHA-256; Ed25519
// over the message. These are what cosign makes.
func (k Key) verify(message, signature []byte) error {
	digest := sha256.Sum256(message)
	ok := false
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(p, digest[:], signature)
		if !ok && p.Curve == elliptic.P384() {
			long := sha512.Sum384(message)
			ok = ecdsa.VerifyASN1(p, long[:], signature)
		}
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(p, crypto.SHA256, digest[:], signature) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(p, message, signature)
	}
	if !ok {
		return errors.New("the signature is not that of this key")
	}
	return nil
}

// Signer is a private key.
type Signer struct{ private crypto.Signer }

// NewSigner makes a key of P-256.
func NewSigner() (Signer, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return Signer{k}, err
}

// ParseSigner reads a private key: PKCS #8 ("PRIVATE KEY"), without a passphrase.
func ParseSigner(text []byte) (Signer, error) {
	block, err := onlyBlock(text)
	if err != nil {
		return Signer{}, err
	}
	if block.Type != "PRIVATE KEY" {
		return Signer{}, fmt.Errorf("a block %q instead of PRIVATE KEY (PKCS #8 without a passphrase)", block.Type)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := k.(crypto.Signer)
	if err != nil || !ok {
		return Signer{}, errors.New("the block is no private key of a known kind")
	}
	return Signer{private}, checkKind(private.Public())
}

// PEM writes the private and the public key.
func (s Signer) PEM() (private, public []byte, err error) {
	d, errD := x509.MarshalPKCS8PrivateKey(s.private)
	p, errP := x509.MarshalPKIXPublicKey(s.private.Public())
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: d}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: p}), errors.Join(errD, errP)
}

// String hides the key.
func (s Signer) String() string { return "[redacted]" }

// GoString hides the key.
func (s Signer) GoString() string { return "[redacted]" }

// Sign signs a message, in the first of the ways that Key accepts.
func (s Signer) Sign(message []byte) ([]byte, error) {
	if _, ok := s.private.(ed25519.PrivateKey); ok {
		return s.private.Sign(rand.Reader, message, crypto.Hash(0))
	}
	digest := sha256.Sum256(message)
	return s.private.Sign(rand.Reader, digest[:], crypto.SHA256)
}
