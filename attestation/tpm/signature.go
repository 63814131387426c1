// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/coco-shim/coco/attestation"
)

// signature is one that can be read, with its scheme.
type signature struct {
	scheme uint16
	hash   crypto.Hash
	value  []byte // RSA
	der    []byte // ECDSA
}

// parseSignature reads a signature as a TPM writes it (TPMT_SIGNATURE), or a raw one: the bytes of RSASSA, or r and s
// of
// ECDSA beside each other or in DER. A raw one has the key's scheme, else RSASSA or ECDSA with SHA-256.
func (k *Key) parseSignature(b []byte) (*signature, error) {
	if len(b) > maxPart {
		return nil, malformed("signature", fmt.Sprintf("at most %d bytes", maxPart), fmt.Sprint(len(b)))
	}
	raw := k.hash
	if raw == 0 {
		raw = crypto.SHA256
	}
	switch p := k.Public.(type) {
	case *rsa.PublicKey:
		if len(b) == p.Size() {
			scheme := k.scheme
			if scheme == 0 {
				scheme = algRSASSA
			}
			return &signature{scheme: scheme, hash: raw, value: b}, nil
		}
	case *ecdsa.PublicKey:
		size := (p.Curve.Params().BitSize + 7) / 8
		if len(b) == 2*size {
			der, err := ecdsaDER(b[:size], b[size:])
			return &signature{scheme: algECDSA, hash: raw, der: der}, err
		}
		if len(b) > 0 && b[0] == 0x30 {
			return &signature{scheme: algECDSA, hash: raw, der: b}, nil
		}
	}
	return parseTPMT(b)
}

// parseTPMT reads a TPMT_SIGNATURE.
func parseTPMT(b []byte) (*signature, error) {
	r := &reader{what: "signature", rest: b}
	s := &signature{scheme: r.u16("scheme")}
	alg := r.u16("hash")
	if r.failed != nil {
		return nil, r.failed
	}
	known := false
	if s.hash, known = hashes[alg]; !known {
		return nil, unsupported("signature.hash", "SHA-256, SHA-384 or SHA-512", fmt.Sprintf("%#04x", alg))
	}
	switch s.scheme {
	case algRSASSA, algRSAPSS:
		s.value = r.sized("value")
	case algECDSA:
		der, err := ecdsaDER(r.sized("r"), r.sized("s"))
		if err != nil {
			return nil, err
		}
		s.der = der
	default:
		return nil, unsupported("signature.scheme", "RSASSA, RSAPSS or ECDSA", fmt.Sprintf("%#04x", s.scheme))
	}
	return s, r.end()
}

func ecdsaDER(r, s []byte) ([]byte, error) {
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
	if err != nil {
		return nil, attestation.Fail(attestation.CodeMalformed, "signature", "two numbers", "other bytes", err)
	}
	return der, nil
}

// verify checks the signature over a message.
func (k *Key) verify(message []byte, s *signature) error {
	if k.scheme != 0 && k.scheme != s.scheme {
		return fmt.Errorf("its scheme is %#04x, the key's is %#04x", s.scheme, k.scheme)
	}
	if k.hash != 0 && k.hash != s.hash {
		return fmt.Errorf("its hash is %s, the key's scheme has %s", bankName(s.hash), bankName(k.hash))
	}
	h := s.hash.New()
	h.Write(message)
	sum := h.Sum(nil)
	switch p := k.Public.(type) {
	case *rsa.PublicKey:
		switch s.scheme {
		case algRSASSA:
			return rsa.VerifyPKCS1v15(p, s.hash, sum, s.value)
		case algRSAPSS:
			return rsa.VerifyPSS(p, s.hash, sum, s.value, nil)
		}
	case *ecdsa.PublicKey:
		if s.scheme == algECDSA {
			if ecdsa.VerifyASN1(p, sum, s.der) {
				return nil
			}
			return errors.New("it is not one of this key over these bytes")
		}
	}
	return fmt.Errorf("its scheme %#04x does not fit a %T", s.scheme, k.Public)
}
