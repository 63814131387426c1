// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idblock

import (
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"math/big"
)

// Anonymous returns an ID authentication structure that pins an ID block without anyone having
// a private key. The signature is a constant that nobody chose freely; the public key is recovered
// so that the signature fits this very ID block. The firmware enforces the block as it does any
// other. The key's digest in the report is a function of the ID block alone: it says nothing about
// who made the block, and since no private key is known, no other block can be signed for the same key.
func Anonymous(block Block) ([]byte, error) {
	raw := block.Marshal()
	x, y, err := recoverKey(raw)
	if err != nil {
		return nil, err
	}
	auth := make([]byte, AuthSize)
	binary.LittleEndian.PutUint32(auth[offIDKeyAlgo:], algoP384SHA384)
	r, _, s := constantSignature()
	putNumber(auth[offBlockSig:], r)
	putNumber(auth[offBlockSig+coordinate:], s)
	binary.LittleEndian.PutUint32(auth[offIDKey:], curveP384)
	putNumber(auth[offIDKey+4:], x)
	putNumber(auth[offIDKey+4+coordinate:], y)
	if _, err := Verify(raw, auth); err != nil {
		return nil, err
	}
	return auth, nil
}

// recoverKey returns the public key Q = r⁻¹(sR − zG) for which the constant signature is valid (SEC 1, 4.1.6).
func recoverKey(msg []byte) (x, y *big.Int, err error) {
	c := elliptic.P384()
	n := c.Params().N
	r, ry, s := constantSignature()
	h := sha512.Sum384(msg)
	inv := new(big.Int).ModInverse(r, n)
	u := new(big.Int).Mul(s, inv)
	u.Mod(u, n)
	v := new(big.Int).Mul(new(big.Int).SetBytes(h[:]), inv)
	v.Neg(v).Mod(v, n)
	// The standard library has no other arithmetic on P-384. The points are public and checked to be on
	// the curve, so that neither time nor invalid inputs matter.
	//lint:ignore SA1019 see above
	ax, ay := c.ScalarMult(r, ry, u.Bytes())
	//lint:ignore SA1019 see above
	bx, by := c.ScalarBaseMult(v.Bytes())
	//lint:ignore SA1019 see above
	x, y = c.Add(ax, ay, bx, by)
	if x.Sign() == 0 && y.Sign() == 0 {
		return nil, nil, errors.New("no key fits the ID block; this has a probability of 2^-384")
	}
	return x, y, nil
}

// constantSignature returns r, the y coordinate of the point with x = r, and s. r is the first
// value of SHA-384("coco anonymous SNP ID key r" ‖ counter) that is below the group's order and the x
// coordinate of a point; of the two points the one with even y counts. s is made likewise.
func constantSignature() (r, y, s *big.Int) {
	p := elliptic.P384().Params()
	for i := byte(0); ; i++ {
		r = candidate("r", i)
		if y = pointY(p, r); y != nil && r.Cmp(p.N) < 0 && r.Sign() > 0 {
			break
		}
	}
	for i := byte(0); ; i++ {
		if s = candidate("s", i); s.Cmp(p.N) < 0 && s.Sign() > 0 {
			return r, y, s
		}
	}
}

func candidate(name string, counter byte) *big.Int {
	h := sha512.Sum384(append([]byte("coco anonymous SNP ID key "+name), counter))
	return new(big.Int).SetBytes(h[:])
}

// pointY solves y² = x³ − 3x + b for an even y; nil if there is none.
func pointY(p *elliptic.CurveParams, x *big.Int) *big.Int {
	if x.Cmp(p.P) >= 0 {
		return nil
	}
	t := new(big.Int).Mul(x, x)
	t.Sub(t, big.NewInt(3)).Mul(t, x).Add(t, p.B).Mod(t, p.P)
	y := new(big.Int).ModSqrt(t, p.P)
	if y != nil && y.Bit(0) == 1 {
		y.Sub(p.P, y)
	}
	return y
}
