// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
)

// quantityForm is Kubernetes's <quantity>: a signed decimal number with a binary, decimal or exponential suffix.
var quantityForm = regexp.MustCompile(
	`^([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?[0-9]{1,2})?$`)

var binary = map[string]uint{"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}

var decimal = map[string]int{"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}

// maxDigits bounds the work with absurd quantities.
const maxDigits = 64

// parseQuantity reads a quantity, rounded up to 10⁻⁹ as Kubernetes does.
func parseQuantity(s string) (*big.Rat, error) {
	var m []string
	if len(s) <= maxDigits+8 {
		m = quantityForm.FindStringSubmatch(s)
	}
	if m == nil || len(m[2]) > maxDigits {
		return nil, fmt.Errorf("%.60q is not a quantity such as 500m, 2 or 1Gi", s)
	}
	q, ok := new(big.Rat).SetString(m[2])
	if !ok {
		return nil, fmt.Errorf("%.60q is not a quantity", s)
	}
	if m[1] == "-" && q.Sign() != 0 {
		return nil, fmt.Errorf("%.60q is negative", s)
	}
	switch shift, isBinary := binary[m[3]]; {
	case isBinary:
		q.Mul(q, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	default:
		exp, known := decimal[m[3]]
		if !known {
			exp, _ = strconv.Atoi(m[3][1:]) // digits, by the form
		}
		q.Mul(q, power(exp))
	}
	nano := new(big.Rat).Mul(q, power(9))
	return new(big.Rat).Mul(new(big.Rat).SetInt(ceil(nano)), power(-9)), nil
}

func power(exp int) *big.Rat {
	n := exp
	if n < 0 {
		n = -n
	}
	p := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil))
	if exp < 0 {
		p.Inv(p)
	}
	return p
}

func ceil(q *big.Rat) *big.Int {
	n, rest := new(big.Int).QuoRem(q.Num(), q.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		n.Add(n, big.NewInt(1))
	}
	return n
}

// whole is the quantity times a factor, rounded up, at most the largest number.
func whole(q *big.Rat, factor int64) int64 {
	n := ceil(new(big.Rat).Mul(q, new(big.Rat).SetInt64(factor)))
	if !n.IsInt64() {
		return math.MaxInt64
	}
	return n.Int64()
}
