// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idblock

import (
	"crypto/elliptic"
	"math/big"
	"math/rand/v2"
	"testing"
)

func toNum(n *big.Int) num { return fromBytes(n.FillBytes(make([]byte, scalarSize))) }
func toBig(n num) *big.Int { return new(big.Int).SetBytes(n.bytes()) }

// scalars are numbers below m: the edges and some at random.
func scalars(m *big.Int) []*big.Int {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := []*big.Int{
		new(big.Int), big.NewInt(1), big.NewInt(2), new(big.Int).Sub(m, big.NewInt(1)),
		new(big.Int).Sub(m, big.NewInt(2)),
	}
	for range 20 {
		b := make([]byte, scalarSize)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		n := new(big.Int).SetBytes(b)
		out = append(out, n.Mod(n, m))
	}
	return out
}

// Our arithmetic is compared with the standard library's.
func TestFieldAgreesWithTheStandardLibrary(t *testing.T) {
	for _, f := range []*field{fieldP, fieldN} {
		m := toBig(f.m)
		for _, a := range scalars(m) {
			for _, b := range scalars(m) {
				x, y := f.in(toNum(a)), f.in(toNum(b))
				for name, got := range map[string]num{
					"+": f.add(x, y), "-": f.sub(x, y), "*": f.mul(x, y),
					"^": f.pow(x, toNum(b)),
				} {
					want := map[string]*big.Int{
						"+": new(big.Int).Add(a, b), "-": new(big.Int).Sub(a, b),
						"*": new(big.Int).Mul(a, b),
					}[name]
					if name == "^" {
						if b.BitLen() > 8 && a.BitLen() > 8 {
							continue // much work, no news
						}
						want = new(big.Int).Exp(a, b, m)
					}
					if want.Mod(want, m); toBig(f.out(got)).Cmp(want) != 0 {
						t.Errorf("%x %s %x = %x, want %x", a, name, b, toBig(f.out(got)), want)
					}
				}
			}
			if want := new(big.Int).ModInverse(a, m); want != nil && toBig(f.out(f.invert(f.in(toNum(a))))).Cmp(want) != 0 {
				t.Errorf("1/%x is not %x", a, want)
			}
		}
		over := new(big.Int).Add(m, big.NewInt(5))
		if got := toBig(f.out(f.in(toNum(over)))); got.Cmp(big.NewInt(5)) != 0 {
			t.Errorf("a number above the modulus is not reduced: %x", got)
		}
	}
}

func TestCurveAgreesWithTheStandardLibrary(t *testing.T) {
	c := elliptic.P384()
	p := c.Params()
	if gx, gy := curveG.affine(); toBig(fieldP.m).Cmp(p.P) != 0 || toBig(fieldN.m).Cmp(p.N) != 0 ||
		toBig(fieldP.out(curveB)).Cmp(p.B) != 0 ||
		toBig(gx).Cmp(p.Gx) != 0 || toBig(gy).Cmp(p.Gy) != 0 {
		t.Fatal("the curve's numbers differ")
	}
	all := scalars(p.N)
	for i, k := range all {
		if k.Sign() == 0 {
			continue
		}
		//lint:ignore SA1019 the only other arithmetic there is
		qx, qy := c.ScalarBaseMult(k.Bytes())
		q := newPoint(toNum(qx), toNum(qy))
		for _, ab := range [][2]*big.Int{
			{all[len(all)-1-i], k},
			{big.NewInt(1), big.NewInt(1)},
			{new(big.Int), k},
			{k, new(big.Int)},
		} {
			a, b := ab[0], ab[1]
			//lint:ignore SA1019 likewise
			ax, ay := c.ScalarBaseMult(a.Bytes())
			//lint:ignore SA1019 likewise
			bx, by := c.ScalarMult(qx, qy, b.Bytes())
			//lint:ignore SA1019 likewise
			wx, wy := c.Add(ax, ay, bx, by)
			if x, y := combine(toNum(a), curveG, toNum(b), q).affine(); toBig(x).Cmp(wx) != 0 || toBig(y).Cmp(wy) != 0 {
				t.Errorf("%x·G + %x·%x·G = (%x, %x), want (%x, %x)", a, b, k, x, y, wx, wy)
			}
		}
		if y, ok := pointY(toNum(qx)); !ok || toBig(y).Cmp(qy) != 0 && toBig(y).Cmp(new(big.Int).Sub(p.P, qy)) != 0 ||
			y[0]&1 != 0 {
			t.Errorf("pointY(%x) = %x, %v", qx, y, ok)
		}
	}
	last := toNum(new(big.Int).Sub(p.N, big.NewInt(1)))
	if x, y := combine(num{1}, curveG, last, curveG).affine(); !x.zero() || !y.zero() {
		t.Error("G − G is not the point at infinity")
	}
}

func BenchmarkAnonymous(b *testing.B) {
	for b.Loop() {
		if _, err := Anonymous(Block{Policy: DefaultPolicy}); err != nil {
			b.Fatal(err)
		}
	}
}
