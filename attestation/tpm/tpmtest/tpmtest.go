// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tpmtest plays a TPM for tests: an attestation key and its quotes, in the bytes that a TPM writes. A
// quote is right unless a test edits it before it is signed. A test of package tpm holds it to a real one (swtpm).
package tpmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
)

// Now is a time at which everything is valid.
var Now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// Algorithms of TPM 2.0 Library, part 2.
const (
	RSASSA = 0x14
	RSAPSS = 0x16
	ECDSA  = 0x18
	Null   = 0x10
	SHA1   = 0x04
	SHA256 = 0x0b
	SHA384 = 0x0c
	SHA512 = 0x0d
)

// AKAttributes are those of a restricted signing key: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth,
// restricted,
// sign.
const AKAttributes = 1<<1 | 1<<4 | 1<<5 | 1<<6 | 1<<16 | 1<<18

// TPM is a TPM with one attestation key. Its fields may be changed before a quote is made.
type TPM struct {
	Key        crypto.Signer
	Scheme     uint16
	Hash       uint16 // of the signature
	Attributes uint32
	PCRs       map[int][]byte // of the SHA-256 bank
}

// NewRSA makes a TPM with an RSA key, scheme RSASSA.
func NewRSA(t testing.TB) *TPM {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return newTPM(k, RSASSA)
}

// NewECC makes a TPM with a key of P-256.
func NewECC(t testing.TB) *TPM {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newTPM(k, ECDSA)
}

func newTPM(k crypto.Signer, scheme uint16) *TPM {
	pcrs := map[int][]byte{}
	for i := range 24 {
		pcrs[i] = make([]byte, 32)
	}
	return &TPM{Key: k, Scheme: scheme, Hash: SHA256, Attributes: AKAttributes, PCRs: pcrs}
}

// Extend extends a PCR.
func (p *TPM) Extend(n int, digest []byte) {
	sum := sha256.Sum256(append(bytes.Clone(p.PCRs[n]), digest...))
	p.PCRs[n] = sum[:]
}

var be = binary.BigEndian

func sized(b, data []byte) []byte {
	return append(be.AppendUint16(b, uint16(len(data))), data...)
}

// Public returns the key as a TPM2B_PUBLIC. A scheme that is Null leaves the choice to each signature.
func (p *TPM) Public(t testing.TB, scheme uint16) []byte {
	t.Helper()
	kind := uint16(0x01)
	if p.Scheme == ECDSA {
		kind = 0x23
	}
	b := be.AppendUint32(be.AppendUint16(be.AppendUint16(nil, kind), SHA256), p.Attributes)
	b = sized(b, nil)              // policy
	b = be.AppendUint16(b, Null)   // symmetric
	b = be.AppendUint16(b, scheme) // scheme
	if scheme != Null {
		b = be.AppendUint16(b, p.Hash)
	}
	switch k := p.Key.Public().(type) {
	case *rsa.PublicKey:
		b = be.AppendUint32(be.AppendUint16(b, uint16(k.N.BitLen())), 0)
		b = sized(b, k.N.Bytes())
	case *ecdsa.PublicKey:
		b = be.AppendUint16(be.AppendUint16(b, 3), Null) // P-256, no key derivation
		point, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b = sized(sized(b, point[1:33]), point[33:])
	}
	return sized(nil, b)
}

// Attest is a quote before it is encoded.
type Attest struct {
	Magic      uint32
	Type       uint16
	ExtraData  []byte
	Safe       byte
	Selections []Select
	Digest     []byte // nil: that of the selected PCRs
	Tail       []byte
}

// Select is a selection of PCRs as bits.
type Select struct {
	Hash uint16
	Bits []byte
}

// Quote returns evidence for PCRs 0 to 9 of the SHA-256 bank with a nonce. The edit may be nil.
func (p *TPM) Quote(t testing.TB, nonce []byte, edit func(*Attest)) attestation.Evidence {
	t.Helper()
	a := &Attest{
		Magic: 0xff544347, Type: 0x8018, ExtraData: nonce, Safe: 1,
		Selections: []Select{{SHA256, []byte{0xff, 3, 0}}},
	}
	if edit != nil {
		edit(a)
	}
	if a.Digest == nil {
		h := p.hash(t).New()
		for _, s := range a.Selections {
			for i := range 8 * len(s.Bits) {
				if s.Bits[i/8]&(1<<(i%8)) != 0 {
					h.Write(p.PCRs[i])
				}
			}
		}
		a.Digest = h.Sum(nil)
	}
	b := be.AppendUint16(be.AppendUint32(nil, a.Magic), a.Type)
	b = sized(b, append([]byte{0, SHA256}, bytes.Repeat([]byte{0x51}, 32)...))
	b = sized(b, a.ExtraData)
	b = be.AppendUint32(be.AppendUint32(be.AppendUint64(b, 1234), 2), 3)
	b = append(b, a.Safe)
	b = be.AppendUint64(b, 0x2022)
	b = be.AppendUint32(b, uint32(len(a.Selections)))
	for _, s := range a.Selections {
		b = append(append(be.AppendUint16(b, s.Hash), byte(len(s.Bits))), s.Bits...)
	}
	b = append(sized(b, a.Digest), a.Tail...)
	pcrs := map[int][]byte{}
	for n, v := range p.PCRs {
		pcrs[n] = v
	}
	return attestation.Evidence{
		Type: attestation.TPM, Report: b, Signature: p.Sign(t, b), Key: p.Public(t, p.Scheme), PCRs: pcrs,
	}
}

func (p *TPM) hash(t testing.TB) crypto.Hash {
	t.Helper()
	h, ok := map[uint16]crypto.Hash{
		SHA256: crypto.SHA256, SHA384: crypto.SHA384, SHA512: crypto.SHA512,
		SHA1: crypto.SHA1,
	}[p.Hash]
	if !ok {
		t.Fatalf("no hash %#x", p.Hash)
	}
	return h
}

// Sign returns a TPMT_SIGNATURE.
func (p *TPM) Sign(t testing.TB, message []byte) []byte {
	t.Helper()
	h := p.hash(t)
	sum := h.New()
	sum.Write(message)
	var opts crypto.SignerOpts = h
	if p.Scheme == RSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	raw, err := p.Key.Sign(rand.Reader, sum.Sum(nil), opts)
	if err != nil {
		t.Fatal(err)
	}
	b := be.AppendUint16(be.AppendUint16(nil, p.Scheme), p.Hash)
	if p.Scheme != ECDSA {
		return sized(b, raw)
	}
	r, s := Split(t, raw)
	return sized(sized(b, r), s)
}

// Certificate returns the AK's certificate of a CA, in DER, with the CA's. The edit may be nil.
func (p *TPM) Certificate(t testing.TB, edit func(*x509.Certificate)) (cert, ca []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of the node's TPMs"},
		NotBefore: Now.AddDate(-1, 0, 0),
		NotAfter:  Now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "TPM of pod 7"}, NotBefore: Now.AddDate(0, -1, 0),
		NotAfter: Now.AddDate(0, 1, 0), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if edit != nil {
		edit(leaf)
	}
	if ca, err = x509.CreateCertificate(rand.Reader, root, root, k.Public(), k); err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.CreateCertificate(rand.Reader, leaf, root, p.Key.Public(), k); err != nil {
		t.Fatal(err)
	}
	return cert, ca
}

// Split returns r and s of a signature in DER.
func Split(t testing.TB, der []byte) (r, s []byte) {
	t.Helper()
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &v); err != nil {
		t.Fatal(err)
	}
	return v.R.Bytes(), v.S.Bytes()
}
