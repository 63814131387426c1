// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idauth

import (
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// hash384 tells crypto.Signer which hash was used without linking more than that.
type hash384 struct{}

func (hash384) HashFunc() crypto.Hash { return crypto.SHA384 }

const scalarSize = 48 // of P-384

// putNumber writes a number of up to 48 bytes as 72 little-endian bytes.
func putNumber(dst []byte, n *big.Int) {
	var b [scalarSize]byte
	idblock.PutBytes(dst, n.FillBytes(b[:]))
}

// takeBytes reads 72 little-endian bytes as 48 big-endian ones.
func takeBytes(src []byte) ([]byte, error) {
	out := make([]byte, scalarSize)
	for i := range scalarSize {
		out[i] = src[scalarSize-1-i]
	}
	return out, zero(src[scalarSize:coordinate])
}

func zero(b []byte) error {
	for i, v := range b {
		if v != 0 {
			return fmt.Errorf("byte %d of a field that must be zero is %#x", i, v)
		}
	}
	return nil
}

func parseDER(der []byte) (r, s *big.Int, err error) {
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) != 0 {
		return nil, nil, errors.New("signature is not in the form the standard library promises")
	}
	return sig.R, sig.S, nil
}
