// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idblock

import (
	"encoding/binary"
	"math/bits"
)

const (
	limbs      = 6
	scalarSize = 8 * limbs // bytes of a number of P-384
)

// num is a number of 384 bits, least significant limb first.
type num [limbs]uint64

// fromBytes reads 48 big-endian bytes.
func fromBytes(b []byte) (n num) {
	for i := range n {
		n[limbs-1-i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return n
}

// bytes is the inverse of fromBytes.
func (n num) bytes() []byte {
	b := make([]byte, 0, scalarSize)
	for i := range n {
		b = binary.BigEndian.AppendUint64(b, n[limbs-1-i])
	}
	return b
}

func (n num) bit(i int) uint64 { return n[i/64] >> (i % 64) & 1 }
func (n num) zero() bool       { return n == num{} }

// minus returns a − b and the borrow.
func minus(a, b num) (r num, borrow uint64) {
	for i := range r {
		r[i], borrow = bits.Sub64(a[i], b[i], borrow)
	}
	return r, borrow
}

// less tells whether a < b.
func less(a, b num) bool { _, borrow := minus(a, b); return borrow == 1 }

// field is arithmetic modulo an odd number above 2^383. Its elements are in Montgomery form, a·2^384, and
// below the modulus. Nothing here takes constant time: all that is computed is public.
type field struct {
	m   num
	inv uint64 // −m⁻¹ modulo 2^64
	rr  num    // 2^768
	one num    // 2^384
}

func newField(m num) *field {
	f := &field{m: m, inv: 1}
	for range 6 { // each step doubles the number of right bits
		f.inv *= 2 - m[0]*f.inv
	}
	f.inv = -f.inv
	f.one, _ = minus(num{}, m) // 2^384 − m, which is below m
	f.rr = f.one
	for range 384 {
		f.rr = f.add(f.rr, f.rr)
	}
	return f
}

// in brings a number of 384 bits into the field, out takes one out of it.
func (f *field) in(n num) num  { return f.mul(f.reduce(n, 0), f.rr) }
func (f *field) out(n num) num { return f.mul(n, num{1}) }

// small is a little number as an element.
func (f *field) small(n uint64) num { return f.in(num{n}) }

// reduce subtracts the modulus where it must, once.
func (f *field) reduce(n num, carry uint64) num {
	if r, borrow := minus(n, f.m); carry >= borrow {
		return r
	}
	return n
}

// add and sub stay calls: inlined everywhere they are as large as the rest of the package.
//
//go:noinline
func (f *field) add(a, b num) (r num) {
	var carry uint64
	for i := range r {
		r[i], carry = bits.Add64(a[i], b[i], carry)
	}
	return f.reduce(r, carry)
}

//go:noinline
func (f *field) sub(a, b num) num {
	r, borrow := minus(a, b)
	if borrow == 1 {
		var carry uint64
		for i := range r {
			r[i], carry = bits.Add64(r[i], f.m[i], carry)
		}
	}
	return r
}

// mul is Montgomery's multiplication, a·b/2^384, one limb of b at a time.
func (f *field) mul(a, b num) num {
	var t [limbs + 1]uint64
	for i := range limbs {
		high := accumulate(&t, a, b[i])
		high += accumulate(&t, f.m, t[0]*f.inv) // t[0] becomes 0
		copy(t[:], t[1:])
		t[limbs] = high
	}
	return f.reduce(num(t[:limbs]), t[limbs])
}

// accumulate adds a·k to t and returns the carry out of it.
func accumulate(t *[limbs + 1]uint64, a num, k uint64) (carry uint64) {
	var c uint64
	for i := range a {
		hi, lo := bits.Mul64(a[i], k)
		lo, over := bits.Add64(lo, c, 0)
		hi += over
		t[i], over = bits.Add64(t[i], lo, 0)
		c = hi + over
	}
	t[limbs], carry = bits.Add64(t[limbs], c, 0)
	return carry
}

// pow returns a^e.
func (f *field) pow(a, e num) num {
	r := f.one
	for i := 64*limbs - 1; i >= 0; i-- {
		if r = f.mul(r, r); e.bit(i) == 1 {
			r = f.mul(r, a)
		}
	}
	return r
}

// invert returns 1/a, by Fermat's little theorem: the modulus is prime.
func (f *field) invert(a num) num {
	e, _ := minus(f.m, num{2})
	return f.pow(a, e)
}
