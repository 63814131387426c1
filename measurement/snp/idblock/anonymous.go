// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idblock

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
)

// Anonymous returns an ID authentication structure that pins an ID block without anyone having
// a private key. The signature is a constant that nobody chose freely; the public key is recovered
// so that the signature fits this very ID block. The firmware enforces the block as it does any
// other. The key's digest in the report is a function of the ID block alone: it says nothing about
// who made the block, and since no private key is known, no other block can be signed for the same key.
func Anonymous(block Block) ([]byte, error) {
	r, ry, s := constantSignature()
	x, y, err := recoverKey(block.Marshal(), r, ry, s)
	if err != nil {
		return nil, err
	}
	auth := make([]byte, AuthSize)
	binary.LittleEndian.PutUint32(auth[OffIDKeyAlgo:], AlgoP384SHA384)
	put(auth[OffBlockSig:], auth[OffIDKey:], r, s, x, y)
	return auth, nil
}

// AnonymousWithAuthor is Anonymous with an author key, made in the same way so that its constant signature fits the ID
// key. There is SNP firmware that refuses ID blocks without an author key.
func AnonymousWithAuthor(block Block) ([]byte, error) {
	auth, err := Anonymous(block)
	if err != nil {
		return nil, err
	}
	r, ry, s := constantSignature()
	x, y, err := recoverKey(auth[OffIDKey:][:KeySize], r, ry, s)
	if err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(auth[OffAuthorAlgo:], AlgoP384SHA384)
	put(auth[OffKeySig:], auth[OffAuthorKey:], r, s, x, y)
	return auth, nil
}

// put writes a signature and a public key.
func put(sig, key []byte, r, s, x, y num) {
	PutBytes(sig, r.bytes())
	PutBytes(sig[NumberSize:], s.bytes())
	binary.LittleEndian.PutUint32(key, CurveP384)
	PutBytes(key[4:], x.bytes())
	PutBytes(key[4+NumberSize:], y.bytes())
}

// PutBytes writes 48 big-endian bytes as 72 little-endian ones.
func PutBytes(dst, b []byte) {
	for i := range scalarSize {
		dst[i] = b[scalarSize-1-i]
	}
	clear(dst[scalarSize:NumberSize])
}

// recoverKey returns the public key Q = r⁻¹(sR − zG) for which the constant signature is valid (SEC 1, 4.1.6).
func recoverKey(msg []byte, r, ry, s num) (x, y num, err error) {
	h := sha512.Sum384(msg)
	f := fieldN
	inv := f.invert(f.in(r))
	u := f.out(f.mul(f.in(s), inv))
	v := f.out(f.sub(num{}, f.mul(f.in(fromBytes(h[:])), inv)))
	x, y = combine(u, newPoint(r, ry), v, curveG).affine()
	if x.zero() && y.zero() {
		return x, y, errors.New("no key fits the ID block; this has a probability of 2^-384")
	}
	return x, y, nil
}

// constantSignature returns r, the y coordinate of the point with x = r, and s. r is the first
// value of SHA-384("coco anonymous SNP ID key r" ‖ counter) that is below the group's order and the x
// coordinate of a point; of the two points the one with even y counts. s is made likewise.
func constantSignature() (r, y, s num) {
	valid := func(n num) bool { return less(n, fieldN.m) && !n.zero() }
	for i := byte(0); ; i++ {
		r = candidate("r", i)
		var ok bool
		if y, ok = pointY(r); ok && valid(r) {
			break
		}
	}
	for i := byte(0); ; i++ {
		if s = candidate("s", i); valid(s) {
			return r, y, s
		}
	}
}

func candidate(name string, counter byte) num {
	h := sha512.Sum384(append([]byte("coco anonymous SNP ID key "+name), counter))
	return fromBytes(h[:])
}
