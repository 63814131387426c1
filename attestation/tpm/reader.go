// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"encoding/binary"
	"fmt"

	"github.com/coco-shim/coco/attestation"
)

// reader takes big-endian values from the front. After the first failure it returns zeros.
type reader struct {
	what   string
	rest   []byte
	failed error
}

func (r *reader) take(field string, n int) []byte {
	if r.failed == nil && n > len(r.rest) {
		r.failed = malformed(r.what+"."+field, fmt.Sprintf("%d bytes", n), fmt.Sprint(len(r.rest)))
	}
	if r.failed != nil {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8(field string) uint8 {
	if b := r.take(field, 1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16(field string) uint16 {
	if b := r.take(field, 2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32(field string) uint32 {
	if b := r.take(field, 4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64(field string) uint64 {
	if b := r.take(field, 8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// sized takes a length of two bytes and as many bytes (TPM2B).
func (r *reader) sized(field string) []byte { return r.take(field, int(r.u16(field+".size"))) }

// end returns the first failure, or one if bytes are left.
func (r *reader) end() error {
	if r.failed == nil && len(r.rest) > 0 {
		r.failed = malformed(r.what, "no bytes after it", fmt.Sprint(len(r.rest)))
	}
	return r.failed
}

func malformed(field, expected, got string) *attestation.Failure {
	return attestation.Fail(attestation.CodeMalformed, field, expected, got, nil)
}

func unsupported(field, expected string, got any) *attestation.Failure {
	return attestation.Fail(attestation.CodeUnsupported, field, expected, fmt.Sprint(got), nil)
}
