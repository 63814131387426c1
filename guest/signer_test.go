// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha1" // version 4 fingerprints are SHA-1
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math/bits"
	"strings"
	"testing"
)

// signer makes OpenPGP keyrings and clear-signed messages (RFC 9580 and, for EdDSA, RFC 4880bis) that gpgv accepts.
type signer struct {
	key    ed25519.PrivateKey
	public []byte // body of the public key packet
}

const signerTime = 1_700_000_000

func newSigner(t *testing.T) *signer {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	body := binary.BigEndian.AppendUint32([]byte{4}, signerTime)
	body = append(body, 22, 9, 0x2b, 6, 1, 4, 1, 0xda, 0x47, 0x0f, 1) // EdDSA, the curve's OID
	return &signer{key, append(body, mpi(append([]byte{0x40}, pub...))...)}
}

func mpi(b []byte) []byte {
	b = bytes.TrimLeft(b, "\x00")
	n := 0
	if len(b) > 0 {
		n = (len(b)-1)*8 + bits.Len8(b[0])
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(n)), b...)
}

func packet(tag byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0xc0 | tag, 0xff}, uint32(len(body))), body...)
}

// hashedKey is the key as fingerprints and certifications hash it.
func (s *signer) hashedKey() []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0x99}, uint16(len(s.public))), s.public...)
}

func (s *signer) signature(kind byte, hashed, extra []byte) []byte {
	fingerprint := sha1.Sum(s.hashedKey())
	sub := binary.BigEndian.AppendUint32([]byte{5, 2}, signerTime+1)
	sub = append(append(sub, 22, 33, 4), fingerprint[:]...)
	sub = append(sub, extra...)
	head := binary.BigEndian.AppendUint16([]byte{4, kind, 22, 8}, uint16(len(sub)))
	head = append(head, sub...)
	h := sha256.New()
	h.Write(hashed)
	h.Write(head)
	h.Write(binary.BigEndian.AppendUint32([]byte{4, 0xff}, uint32(len(head))))
	sum := h.Sum(nil)
	sig := ed25519.Sign(s.key, sum)
	unhashed := append([]byte{9, 16}, fingerprint[12:]...)
	body := binary.BigEndian.AppendUint16(head, uint16(len(unhashed)))
	body = append(append(body, unhashed...), sum[:2]...)
	return packet(2, append(append(body, mpi(sig[:32])...), mpi(sig[32:])...))
}

// keyring is the public key with a name, as in /usr/share/keyrings.
func (s *signer) keyring() []byte {
	const name = "An archive of the tests"
	uid := binary.BigEndian.AppendUint32([]byte{0xb4}, uint32(len(name)))
	certified := append(append(s.hashedKey(), uid...), name...)
	out := append(packet(6, s.public), packet(13, []byte(name))...)
	return append(out, s.signature(0x13, certified, []byte{2, 27, 3})...) // may certify and sign
}

func (s *signer) clearSign(text string) []byte {
	text = strings.TrimRight(text, "\n")
	sig := s.signature(1, []byte(strings.ReplaceAll(text, "\n", "\r\n")), nil)
	return []byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + text +
		"\n-----BEGIN PGP SIGNATURE-----\n\n" + base64.StdEncoding.EncodeToString(sig) + "\n-----END PGP SIGNATURE-----\n")
}
