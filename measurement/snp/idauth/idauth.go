// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package idauth signs ID blocks with the owner's keys and checks ID authentication structures as the AMD
// firmware does. Keys come from the caller; signatures are deterministic. It is separate from package idblock
// because of the libraries that it links: the shim needs anonymous ID blocks only.
package idauth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// Short names of package idblock's layout.
const (
	algoNone       = idblock.AlgoNone
	algoP384SHA384 = idblock.AlgoP384SHA384

	offIDKeyAlgo, offAuthorAlgo = idblock.OffIDKeyAlgo, idblock.OffAuthorAlgo
	offBlockSig, offIDKey       = idblock.OffBlockSig, idblock.OffIDKey
	offKeySig, offAuthorKey     = idblock.OffKeySig, idblock.OffAuthorKey

	sigSize    = idblock.SignatureSize
	keySize    = idblock.KeySize
	coordinate = idblock.NumberSize
	curveP384  = idblock.CurveP384
)

// Sign returns the ID authentication structure for an ID block, signed with the owner's ID
// key and, if author is not nil, with the ID key's author key. Signatures are deterministic (RFC 6979).
func Sign(block idblock.Block, id, author *ecdsa.PrivateKey) ([]byte, error) {
	auth := make([]byte, idblock.AuthSize)
	binary.LittleEndian.PutUint32(auth[offIDKeyAlgo:], algoP384SHA384)
	if err := signInto(auth[offBlockSig:], id, block.Marshal()); err != nil {
		return nil, fmt.Errorf("sign id block with id key: %w", err)
	}
	key, err := encodeKey(&id.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("id key: %w", err)
	}
	copy(auth[offIDKey:], key)
	if author == nil {
		return auth, nil
	}
	binary.LittleEndian.PutUint32(auth[offAuthorAlgo:], algoP384SHA384)
	if err := signInto(auth[offKeySig:], author, key); err != nil {
		return nil, fmt.Errorf("sign id key with author key: %w", err)
	}
	if key, err = encodeKey(&author.PublicKey); err != nil {
		return nil, fmt.Errorf("author key: %w", err)
	}
	copy(auth[offAuthorKey:], key)
	return auth, nil
}

func signInto(dst []byte, key *ecdsa.PrivateKey, msg []byte) error {
	if key == nil || key.Curve != elliptic.P384() {
		return errors.New("key is not on curve P-384")
	}
	h := sha512.Sum384(msg)
	der, err := key.Sign(nil, h[:], hash384{}) // without a source of randomness: RFC 6979
	if err != nil {
		return err
	}
	r, s, err := parseDER(der)
	if err != nil {
		return err
	}
	putNumber(dst, r)
	putNumber(dst[coordinate:], s)
	return nil
}

// encodeKey returns the 1028-byte form of a public key.
func encodeKey(k *ecdsa.PublicKey) ([]byte, error) {
	if k.Curve != elliptic.P384() {
		return nil, errors.New("key is not on curve P-384")
	}
	raw, err := k.Bytes() // 04 ‖ X ‖ Y
	if err != nil {
		return nil, err
	}
	out := make([]byte, keySize)
	binary.LittleEndian.PutUint32(out, curveP384)
	idblock.PutBytes(out[4:], raw[1:49])
	idblock.PutBytes(out[4+coordinate:], raw[49:])
	return out, nil
}

func decodeKey(b []byte) (*ecdsa.PublicKey, error) {
	if c := binary.LittleEndian.Uint32(b); c != curveP384 {
		return nil, fmt.Errorf("key is on curve %d, not on P-384 (2)", c)
	}
	x, errX := takeBytes(b[4:])
	y, errY := takeBytes(b[4+coordinate:])
	if err := errors.Join(errX, errY, zero(b[4+2*coordinate:keySize])); err != nil {
		return nil, err
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P384(), append(append([]byte{4}, x...), y...))
}

// KeyDigests are the fields of an attestation report that name the keys of an ID block.
type KeyDigests struct {
	ID     measurement.Digest
	Author measurement.Digest // absent without an author key
}

// Verify checks an ID block against its authentication structure as the AMD firmware does at
// launch, and returns the digests of the keys.
func Verify(block, auth []byte) (KeyDigests, error) {
	if _, err := idblock.Parse(block); err != nil {
		return KeyDigests{}, err
	}
	if len(auth) != idblock.AuthSize {
		return KeyDigests{}, fmt.Errorf("id authentication has %d bytes, not %d", len(auth), idblock.AuthSize)
	}
	if a := binary.LittleEndian.Uint32(auth[offIDKeyAlgo:]); a != algoP384SHA384 {
		return KeyDigests{}, fmt.Errorf("id key algorithm is %d, not %d", a, algoP384SHA384)
	}
	for _, r := range [][2]int{
		{8, offBlockSig},
		{offIDKey + keySize, offKeySig},
		{offAuthorKey + keySize, idblock.AuthSize},
	} {
		if err := zero(auth[r[0]:r[1]]); err != nil {
			return KeyDigests{}, fmt.Errorf("id authentication at %#x: %w", r[0], err)
		}
	}
	idKey := auth[offIDKey : offIDKey+keySize]
	if err := verify(idKey, auth[offBlockSig:offBlockSig+sigSize], block); err != nil {
		return KeyDigests{}, fmt.Errorf("id block's signature by the id key: %w", err)
	}
	d := sha512.Sum384(idKey)
	out := KeyDigests{ID: d[:]}
	switch a := binary.LittleEndian.Uint32(auth[offAuthorAlgo:]); a {
	case algoNone:
		if err := zero(auth[offKeySig:]); err != nil {
			return KeyDigests{}, fmt.Errorf("id authentication names no author key, yet: %w", err)
		}
		return out, nil
	case algoP384SHA384:
	default:
		return KeyDigests{}, fmt.Errorf("author key algorithm is %d, not 0 or %d", a, algoP384SHA384)
	}
	authorKey := auth[offAuthorKey : offAuthorKey+keySize]
	if err := verify(authorKey, auth[offKeySig:offKeySig+sigSize], idKey); err != nil {
		return KeyDigests{}, fmt.Errorf("id key's signature by the author key: %w", err)
	}
	a := sha512.Sum384(authorKey)
	out.Author = a[:]
	return out, nil
}

func verify(key, sig, msg []byte) error {
	pub, err := decodeKey(key)
	if err != nil {
		return err
	}
	r, errR := takeBytes(sig)
	s, errS := takeBytes(sig[coordinate:])
	if err := errors.Join(errR, errS, zero(sig[2*coordinate:sigSize])); err != nil {
		return err
	}
	h := sha512.Sum384(msg)
	if !ecdsa.Verify(pub, h[:], new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)) {
		return errors.New("does not match")
	}
	return nil
}
