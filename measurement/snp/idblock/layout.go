// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idblock

// AuthSize is the length of an encoded ID authentication structure (56860, table 76).
const AuthSize = 4096

// Layout of the ID authentication structure. Numbers are little-endian, zero-padded from 48 to 72 bytes.
const (
	OffIDKeyAlgo  = 0x00 // algorithm of the ID key
	OffAuthorAlgo = 0x04 // algorithm of the author key
	OffBlockSig   = 0x40 // signature over the ID block
	OffIDKey      = 0x240
	OffKeySig     = 0x680 // signature over the ID key
	OffAuthorKey  = 0x880

	SignatureSize = 512
	KeySize       = 1028
	NumberSize    = 72

	AlgoNone       = 0
	AlgoP384SHA384 = 1 // ECDSA on P-384 with SHA-384
	CurveP384      = 2
)
