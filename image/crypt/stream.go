// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

const (
	keySize   = 32 // AES-256, and the key of HMAC
	blockSize = aes.BlockSize
	macSize   = sha256.Size
)

// stream encrypts or decrypts the bytes that it reads. want is the HMAC when it decrypts.
type stream struct {
	r      io.Reader
	ctr    cipher.Stream
	mac    hash.Hash
	plain  hash.Hash
	digest string
	want   []byte
	err    error
}

func newStream(r io.Reader, p private) (*stream, error) {
	if len(p.Key) != keySize || len(p.Options["nonce"]) != blockSize {
		return nil, fmt.Errorf("the layer's key is not %d bytes, or its nonce not %d", keySize, blockSize)
	}
	block, err := aes.NewCipher(p.Key)
	if err != nil {
		return nil, err
	}
	return &stream{
		r: r, ctr: cipher.NewCTR(block, p.Options["nonce"]), mac: hmac.New(sha256.New, p.Key), plain: sha256.New(),
		digest: p.Digest,
	}, nil
}

// Read returns the next bytes, and at the end a verdict on all of them.
func (s *stream) Read(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(b)
	b = b[:n]
	if s.want != nil {
		s.mac.Write(b)
		s.ctr.XORKeyStream(b, b)
	} else {
		s.plain.Write(b)
		s.ctr.XORKeyStream(b, b)
		s.mac.Write(b)
	}
	if errors.Is(err, io.EOF) {
		err = s.verdict()
	}
	s.err = err
	return n, err
}

// verdict returns io.EOF if the layer is the one that was meant.
func (s *stream) verdict() error {
	if s.want != nil {
		if !hmac.Equal(s.mac.Sum(nil), s.want) {
			return errors.New("decrypt the layer: it was changed, or is another one (HMAC)")
		}
		return io.EOF
	}
	if got := "sha256:" + hex.EncodeToString(s.plain.Sum(nil)); got != s.digest {
		return fmt.Errorf("the plain layer has digest %s, and %.80q was to be it", got, s.digest)
	}
	return io.EOF
}

// random returns bytes from the system's generator, which does not fail.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
