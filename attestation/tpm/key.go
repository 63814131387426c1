// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"

	"github.com/coco-shim/coco/attestation"
)

// Attributes of an object (TPMA_OBJECT).
const (
	fixedTPM            = 1 << 1
	fixedParent         = 1 << 4
	sensitiveDataOrigin = 1 << 5
	restricted          = 1 << 16
	decrypt             = 1 << 17
	signEncrypt         = 1 << 18
)

// akAttributes must be set in an AK: the key was made in the TPM, cannot leave it, and signs only what the TPM itself
// has
// made.
const akAttributes = fixedTPM | fixedParent | sensitiveDataOrigin | restricted | signEncrypt

// minRSA is the shortest RSA key that counts as safe.
const minRSA = 2048

// Key is a public key of a TPM.
type Key struct {
	Public     crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
	Bare       bool             // only the key is known, not what the TPM says of it
	Attributes uint32
	Name       attestation.Hex // algorithm and digest of the public area
	// scheme and hash are those of the key's signing scheme; zero if each signature may choose.
	scheme uint16
	hash   crypto.Hash
}

// ParseKey reads a key as a TPM writes it (TPM2B_PUBLIC or TPMT_PUBLIC), or a bare key (SubjectPublicKeyInfo in DER or
// PEM).
func ParseKey(b []byte) (*Key, error) {
	if len(b) > maxPart || len(b) < 4 {
		return nil, malformed("key", fmt.Sprintf("4 to %d bytes", maxPart), fmt.Sprint(len(b)))
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	if len(b) > 0 && b[0] == 0x30 {
		return parseBare(b)
	}
	if r := (&reader{what: "key", rest: b}); int(r.u16("size")) == len(r.rest) {
		b = r.rest
	}
	return parsePublic(b)
}

func parseBare(der []byte) (*Key, error) {
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, attestation.Fail(attestation.CodeMalformed, "key", "a public key", "other bytes", err)
	}
	k := &Key{Public: public, Bare: true}
	return k, k.check()
}

// parsePublic reads a TPMT_PUBLIC.
func parsePublic(b []byte) (*Key, error) {
	r := &reader{what: "key", rest: b}
	kind, nameAlg := r.u16("type"), r.u16("name_alg")
	k := &Key{Attributes: r.u32("attributes")}
	r.sized("auth_policy")
	nameHash, ok := hashes[nameAlg]
	if r.failed == nil && !ok {
		return nil, unsupported("key.name_alg", "SHA-256, SHA-384 or SHA-512", fmt.Sprintf("%#04x", nameAlg))
	}
	if alg := r.u16("symmetric"); r.failed == nil && alg != algNull {
		return nil, unsupported("key.symmetric", "none, as signing keys have it", fmt.Sprintf("%#04x", alg))
	}
	if err := k.readScheme(r); err != nil {
		return nil, err
	}
	switch kind {
	case algRSA:
		k.readRSA(r)
	case algECC:
		if err := k.readECC(r); err != nil {
			return nil, err
		}
	default:
		if r.failed == nil {
			return nil, unsupported("key.type", "RSA or ECC", fmt.Sprintf("%#04x", kind))
		}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	h := nameHash.New()
	h.Write(b)
	k.Name = h.Sum(binary.BigEndian.AppendUint16(nil, nameAlg))
	return k, k.check()
}

// readScheme reads the signing scheme, which a key may leave to each signature.
func (k *Key) readScheme(r *reader) error {
	scheme := r.u16("scheme")
	if r.failed != nil || scheme == algNull {
		return r.failed
	}
	alg := r.u16("scheme.hash")
	if r.failed != nil {
		return r.failed
	}
	h, ok := hashes[alg]
	if !ok {
		return unsupported("key.scheme.hash", "SHA-256, SHA-384 or SHA-512", fmt.Sprintf("%#04x", alg))
	}
	k.scheme, k.hash = scheme, h
	return nil
}

func (k *Key) readRSA(r *reader) {
	r.u16("bits")
	exponent := r.u32("exponent")
	if exponent == 0 { // the default
		exponent = 65537
	}
	k.Public = &rsa.PublicKey{E: int(exponent & 0x7fffffff), N: new(big.Int).SetBytes(r.sized("modulus"))}
}

func (k *Key) readECC(r *reader) error {
	id := r.u16("curve")
	curve := map[uint16]elliptic.Curve{3: elliptic.P256(), 4: elliptic.P384(), 5: elliptic.P521()}[id]
	if r.failed == nil && curve == nil {
		return unsupported("key.curve", "P-256, P-384 or P-521", fmt.Sprintf("%#04x", id))
	}
	if alg := r.u16("kdf"); r.failed == nil && alg != algNull {
		return unsupported("key.kdf", "none, as signing keys have it", fmt.Sprintf("%#04x", alg))
	}
	x, y := r.sized("x"), r.sized("y")
	if r.failed != nil {
		return r.failed
	}
	size := (curve.Params().BitSize + 7) / 8
	point := append(append([]byte{4}, pad(x, size)...), pad(y, size)...)
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return attestation.Fail(attestation.CodeMalformed, "key.point", "a point of "+curve.Params().Name,
			fmt.Sprintf("%x", point), err)
	}
	k.Public = public
	return nil
}

// pad fills zeros before a number, which a TPM may leave out.
func pad(b []byte, n int) []byte {
	if len(b) >= n {
		return b
	}
	return append(make([]byte, n-len(b)), b...)
}

// check refuses keys that are too weak to prove anything.
func (k *Key) check() error {
	switch p := k.Public.(type) {
	case *rsa.PublicKey:
		if p.N.BitLen() < minRSA || p.E < 3 || p.E%2 == 0 {
			return unsupported("key.size", fmt.Sprintf("an RSA key of at least %d bits", minRSA),
				fmt.Sprintf("%d bits, exponent %d", p.N.BitLen(), p.E))
		}
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P224() {
			return unsupported("key.curve", "P-256, P-384 or P-521", p.Curve.Params().Name)
		}
	default:
		return unsupported("key.type", "RSA or ECC", fmt.Sprintf("%T", k.Public))
	}
	return nil
}

// equal tells whether a certificate's key is this one.
func (k *Key) equal(other crypto.PublicKey) bool {
	mine, theirs := encode(k.Public), encode(other)
	return mine != nil && bytes.Equal(mine, theirs)
}

// hashPublic returns the SHA-256 of the public key as SubjectPublicKeyInfo.
func (k *Key) hashPublic() []byte {
	sum := sha256.Sum256(encode(k.Public))
	return sum[:]
}

// encode returns a key as SubjectPublicKeyInfo, or nil for a kind that has none.
func encode(k crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return nil
	}
	return der
}
