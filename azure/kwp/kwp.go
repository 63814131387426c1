// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kwp unwraps the keys that Azure Key Vault releases: AES key wrap with padding (RFC 5649), and the scheme
// around it, in which an RSA key wraps the AES key (CKM_RSA_AES_KEY_WRAP of PKCS #11, and Azure's variants of it).
//
// All lengths are checked before a byte is read. A blob that does not unwrap has one error, after the same work, at
// whichever check it fails: how far it came must not be told to its sender.
package kwp

import (
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // CKM_RSA_AES_KEY_WRAP of Azure has OAEP with SHA-1
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// ErrUnwrap says that a blob was not wrapped for this key, or was altered.
var ErrUnwrap = errors.New("the wrapped key does not unwrap: it was made for another key, or altered")

// MaxKey bounds the length of a wrapped key: private keys of RSA with 16384 bits are smaller.
const MaxKey = 64 << 10

const (
	block = 8 // bytes; RFC 3394 calls them semiblocks
	aiv   = 0xA65959A6
)

// Wrap wraps a key of 1 to MaxKey bytes by an AES key of 16, 24 or 32 bytes: RFC 5649, section 4.1.
func Wrap(kek, key []byte) ([]byte, error) {
	c, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if len(key) == 0 || len(key) > MaxKey {
		return nil, fmt.Errorf("a key of %d bytes cannot be wrapped: 1 to %d can", len(key), MaxKey)
	}
	n := (len(key) + block - 1) / block
	out := make([]byte, (n+1)*block)
	binary.BigEndian.PutUint32(out, aiv)
	binary.BigEndian.PutUint32(out[4:], uint32(len(key))) //nolint:gosec // at most MaxKey
	copy(out[block:], key)
	if n == 1 {
		c.Encrypt(out, out)
		return out, nil
	}
	var b [aes.BlockSize]byte
	copy(b[:], out[:block])
	for t := 1; t <= 6*n; t++ { // RFC 3394, section 2.2.1
		r := out[((t-1)%n+1)*block:]
		copy(b[block:], r[:block])
		c.Encrypt(b[:], b[:])
		copy(r, b[block:])
		counter(b[:block], t)
	}
	copy(out, b[:block])
	return out, nil
}

// Unwrap returns the key that Wrap has wrapped: RFC 5649, section 4.2.
func Unwrap(kek, wrapped []byte) ([]byte, error) {
	c, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if err := checkLength(len(wrapped)); err != nil {
		return nil, err
	}
	n := len(wrapped)/block - 1
	out := make([]byte, len(wrapped))
	copy(out, wrapped)
	if n == 1 {
		c.Decrypt(out, out)
		return opened(out)
	}
	var b [aes.BlockSize]byte
	copy(b[:], out[:block])
	for t := 6 * n; t > 0; t-- {
		r := out[((t-1)%n+1)*block:]
		counter(b[:block], t)
		copy(b[block:], r[:block])
		c.Decrypt(b[:], b[:])
		copy(r, b[block:])
	}
	copy(out, b[:block])
	clear(b[:])
	return opened(out)
}

func checkLength(n int) error {
	if n < 2*block || n%block != 0 || n > MaxKey+2*block {
		return fmt.Errorf("a wrapped key of %d bytes: its length is a multiple of 8, from 16 to %d", n, MaxKey+2*block)
	}
	return nil
}

func counter(a []byte, t int) {
	binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(a)^uint64(t)) //nolint:gosec // positive
}

// opened checks constant, length and padding of the decrypted bytes, in the same time for each outcome.
func opened(out []byte) ([]byte, error) {
	key := out[block:]
	n := int(binary.BigEndian.Uint32(out[4:block]))
	var want [4]byte
	binary.BigEndian.PutUint32(want[:], aiv)
	good := subtle.ConstantTimeCompare(out[:4], want[:])
	good &= 1 - n>>31&1
	low := n & 0x7fffffff // the comparisons of crypto/subtle take 31 bits
	good &= subtle.ConstantTimeLessOrEq(low, len(key)) & subtle.ConstantTimeLessOrEq(len(key)-block+1, low)
	pad := 0
	for i := range block { // the padding is in the last semiblock
		at := len(key) - block + i
		pad |= subtle.ConstantTimeSelect(subtle.ConstantTimeLessOrEq(low, at), int(key[at]), 0)
	}
	if good&subtle.ConstantTimeEq(int32(pad), 0) != 1 {
		clear(out)
		return nil, ErrUnwrap
	}
	return key[:n:n], nil
}

// Scheme is a way to wrap a key for an RSA key, by the names of Azure's API.
type Scheme string

// Schemes. They differ in the hash of OAEP.
const (
	RSAAES    Scheme = "CKM_RSA_AES_KEY_WRAP" // SHA-1, the service's default
	RSAAES256 Scheme = "RSA_AES_KEY_WRAP_256"
	RSAAES384 Scheme = "RSA_AES_KEY_WRAP_384"
)

func (s Scheme) hash() (func() hash.Hash, error) {
	switch s {
	case RSAAES:
		return sha1.New, nil
	case RSAAES256:
		return sha256.New, nil
	case RSAAES384:
		return sha512.New384, nil
	}
	return nil, fmt.Errorf("wrapping scheme %.40q: known are %s, %s and %s", string(s), RSAAES, RSAAES256, RSAAES384)
}

// Limits of RSA keys, in bits.
const (
	minModulus = 2048
	maxModulus = 8192
)

// WrapRSA wraps a key for an RSA key: a new AES key in OAEP, then the key wrapped by the AES key.
func WrapRSA(s Scheme, to *rsa.PublicKey, key []byte) ([]byte, error) {
	h, err := s.hash()
	if err != nil {
		return nil, err
	}
	if n := to.N.BitLen(); n < minModulus || n > maxModulus {
		return nil, fmt.Errorf("the wrapping key has %d bits: %d to %d are accepted", n, minModulus, maxModulus)
	}
	kek := make([]byte, 32)
	defer clear(kek)
	rand.Read(kek)
	head, err := rsa.EncryptOAEP(h(), rand.Reader, to, kek, nil)
	if err != nil {
		return nil, fmt.Errorf("wrap the AES key: %w", err)
	}
	tail, err := Wrap(kek, key)
	return append(head, tail...), err
}

// UnwrapRSA returns the key that WrapRSA has wrapped.
func UnwrapRSA(s Scheme, with *rsa.PrivateKey, wrapped []byte) ([]byte, error) {
	h, err := s.hash()
	if err != nil {
		return nil, err
	}
	size := with.Size()
	if len(wrapped) <= size {
		return nil, fmt.Errorf("a wrapped key of %d bytes: an RSA key of %d bits has %d bytes in front of the AES-wrapped "+
			"key", len(wrapped), with.N.BitLen(), size)
	}
	if err := checkLength(len(wrapped) - size); err != nil {
		return nil, err
	}
	kek := make([]byte, 32) // another key, so that a failure of OAEP takes the same way
	rand.Read(kek)
	defer clear(kek)
	got, errOAEP := rsa.DecryptOAEP(h(), nil, with, wrapped[:size], nil)
	defer clear(got)
	if errOAEP == nil && (len(got) == 16 || len(got) == 24 || len(got) == 32) {
		kek = kek[:len(got)]
		copy(kek, got)
	} else {
		errOAEP = ErrUnwrap
	}
	key, err := Unwrap(kek, wrapped[size:])
	if errOAEP != nil || err != nil {
		clear(key)
		return nil, ErrUnwrap
	}
	return key, nil
}
