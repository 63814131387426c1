// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package measurement holds the types that all launch measurements share: the digest value, the trace
// that explains it step by step, and the comparison of two traces.
//
// The packages below it compute digests from launch descriptions: snp (SEV-SNP, SEV-ES, SEV),
// igvm and tdx, helped by the readers ovmf and kernelhashes. All of them are pure: no files, no
// environment, no clock, and no imports but the standard library. The same inputs give the same digest
// and the same trace for ever. Callers open files, cache and print.
package measurement

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// Digest is a launch digest or register value: 48 bytes (SHA-384) for SEV-SNP and TDX, 32 bytes
// (SHA-256) for SEV and SEV-ES. The zero Digest is no digest at all.
type Digest []byte

// String returns the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d) }

// Equal reports whether both digests have the same length and bytes. An absent digest equals nothing.
func (d Digest) Equal(o Digest) bool { return len(d) > 0 && bytes.Equal(d, o) }

// MarshalText encodes the digest as hexadecimal, for JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText decodes hexadecimal of 32 or 48 bytes.
func (d *Digest) UnmarshalText(text []byte) error {
	v, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// ParseDigest decodes a digest of 32 or 48 bytes from hexadecimal.
func ParseDigest(s string) (Digest, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("digest %q is not hexadecimal", clip(s))
	}
	if len(b) != 32 && len(b) != 48 {
		return nil, fmt.Errorf("digest %q has %d bytes, not 32 (SHA-256) or 48 (SHA-384)", clip(s), len(b))
	}
	return b, nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
