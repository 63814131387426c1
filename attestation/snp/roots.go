// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/x509"
	_ "embed" // AMD's certificates
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
)

// AMD's certificates of each product, as kdsintf.amd.com serves them under /vcek/v1/PRODUCT/cert_chain and
// /vlek/v1/PRODUCT/cert_chain: ARK, ASK and ASVK.
var (
	//go:embed amd/milan.pem
	milanPEM []byte
	//go:embed amd/genoa.pem
	genoaPEM []byte
	//go:embed amd/turin.pem
	turinPEM []byte
)

// Issuers are the certificates that sign those of a product's chips.
type Issuers struct {
	// Root is the vendor's root. It is trusted because it stands here, so its own signature counts for nothing.
	Root *x509.Certificate
	// Intermediates are ASK and ASVK. Evidence and collateral may add others, which the root must have signed.
	Intermediates []*x509.Certificate
}

// Verifier verifies reports of the products whose roots it has.
type Verifier struct{ issuers map[Product]Issuers }

// NewVerifier returns a verifier that trusts these roots.
func NewVerifier(issuers map[Product]Issuers) Verifier { return Verifier{issuers} }

// AMD returns the verifier that trusts AMD's roots of Milan, Genoa and Turin.
var AMD = sync.OnceValue(func() Verifier {
	v := Verifier{map[Product]Issuers{}}
	for p, text := range map[Product][]byte{Milan: milanPEM, Genoa: genoaPEM, Turin: turinPEM} {
		certs, err := certificates(text)
		if err != nil || len(certs) != 3 {
			panic(fmt.Sprintf("AMD's certificates of %s that are built in: %d, %v", p, len(certs), err))
		}
		v.issuers[p] = Issuers{Root: certs[0], Intermediates: certs[1:]}
	}
	return v
})

const (
	maxCertificates = 8
	maxCertBytes    = 64 << 10
)

// certificates decodes one DER certificate or several PEM blocks.
func certificates(b []byte) ([]*x509.Certificate, error) {
	if len(b) > maxCertBytes {
		return nil, fmt.Errorf("%d bytes of certificates; at most %d are read", len(b), maxCertBytes)
	}
	if len(b) > 0 && b[0] == 0x30 { // SEQUENCE
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, err
		}
		return []*x509.Certificate{c}, nil
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(out) == maxCertificates {
			return nil, fmt.Errorf("a PEM block %q, or more than %d certificates", block.Type, maxCertificates)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("neither DER nor PEM of a certificate")
	}
	return out, nil
}
