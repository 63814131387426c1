// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idblock

import "encoding/hex"

// The curve P-384 (FIPS 186-4, D.1.2.4): y² = x³ − 3x + b over the field of p, with a generator of order n.
// The standard library's arithmetic on it, or its large numbers, would add 0.1 to 0.3 MB to the shim of every pod.
var (
	fieldP = newField(
		number("fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff"))
	fieldN = newField(
		number("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973"))
	curveB = fieldP.in(
		number("b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef"))
	curveG = newPoint(
		number("aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7"),
		number("3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f"))
)

// number reads a constant of this file.
func number(s string) num {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != scalarSize {
		panic("not a number: " + s)
	}
	return fromBytes(b)
}

// point is a point in Jacobian coordinates: (x/z², y/z³), or the point at infinity if z is 0. The
// coordinates are elements of fieldP.
type point struct{ x, y, z num }

func newPoint(x, y num) point { return point{fieldP.in(x), fieldP.in(y), fieldP.one} }

// double returns 2p (formulas for a = −3).
func (p point) double() point {
	f := fieldP
	if p.z.zero() {
		return p
	}
	delta, gamma := f.mul(p.z, p.z), f.mul(p.y, p.y)
	beta := f.mul(p.x, gamma)
	m := f.mul(f.sub(p.x, delta), f.add(p.x, delta))
	alpha := f.add(m, f.add(m, m))
	beta4 := quadruple(beta)
	x := f.sub(f.mul(alpha, alpha), f.add(beta4, beta4))
	yz := f.add(p.y, p.z)
	z := f.sub(f.sub(f.mul(yz, yz), gamma), delta)
	gg := quadruple(f.mul(gamma, gamma))
	y := f.sub(f.mul(alpha, f.sub(beta4, x)), f.add(gg, gg))
	return point{x, y, z}
}

func quadruple(a num) num { b := fieldP.add(a, a); return fieldP.add(b, b) }

// add returns p + q.
func (p point) add(q point) point {
	f := fieldP
	switch {
	case p.z.zero():
		return q
	case q.z.zero():
		return p
	}
	pz, qz := f.mul(p.z, p.z), f.mul(q.z, q.z)
	u1, u2 := f.mul(p.x, qz), f.mul(q.x, pz)
	s1, s2 := f.mul(p.y, f.mul(q.z, qz)), f.mul(q.y, f.mul(p.z, pz))
	h, r := f.sub(u2, u1), f.sub(s2, s1)
	if h.zero() {
		if r.zero() {
			return p.double()
		}
		return point{}
	}
	hh := f.mul(h, h)
	hhh, v := f.mul(h, hh), f.mul(u1, hh)
	x := f.sub(f.sub(f.mul(r, r), hhh), f.add(v, v))
	y := f.sub(f.mul(r, f.sub(v, x)), f.mul(s1, hhh))
	return point{x, y, f.mul(h, f.mul(p.z, q.z))}
}

// affine returns the coordinates; zeros for the point at infinity, which is none on the curve.
func (p point) affine() (x, y num) {
	f := fieldP
	inv := f.invert(p.z) // 0 for 0
	inv2 := f.mul(inv, inv)
	return f.out(f.mul(p.x, inv2)), f.out(f.mul(p.y, f.mul(inv, inv2)))
}

// combine returns a·p + b·q, both products at once.
func combine(a num, p point, b num, q point) point {
	sum, r := p.add(q), point{}
	for i := 64*limbs - 1; i >= 0; i-- {
		r = r.double()
		switch a.bit(i)<<1 | b.bit(i) {
		case 3:
			r = r.add(sum)
		case 2:
			r = r.add(p)
		case 1:
			r = r.add(q)
		}
	}
	return r
}

// pointY solves y² = x³ − 3x + b for an even y.
func pointY(x num) (y num, ok bool) {
	f := fieldP
	if !less(x, f.m) {
		return y, false
	}
	e := f.in(x)
	t := f.add(f.sub(f.mul(e, f.mul(e, e)), f.mul(f.small(3), e)), curveB)
	// (p + 1) / 4
	root := f.pow(t,
		number("3fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffbfffffffc00000000000000040000000"))
	if f.mul(root, root) != t {
		return y, false
	}
	if y = f.out(root); y[0]&1 == 1 {
		y, _ = minus(f.m, y)
	}
	return y, true
}
