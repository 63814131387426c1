// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Extensions of AMD's certificates: "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
// Specification", AMD 57230, and the same for the VLEK, AMD 58369.
var amdOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

// Arcs below amdOID.
const (
	oidProduct   = "2"
	oidBoot      = "3.1"
	oidTEE       = "3.2"
	oidSNP       = "3.3"
	oidMicrocode = "3.8"
	oidFMC       = "3.9"
	oidHWID      = "4"
	oidCSP       = "5"
)

// reservedSPLs are levels of parts that no product has.
var reservedSPLs = []string{"3.4", "3.5", "3.6", "3.7"}

// endorsement is the certificate of the key that signs reports.
type endorsement struct {
	cert    *x509.Certificate
	key     *ecdsa.PublicKey
	product string // such as Milan-B0
	tcb     TCB
	hwid    []byte // of a VCEK
	csp     string // the provider to whom a VLEK belongs
}

// parseEndorsement decodes the extensions of a VCEK or VLEK.
func parseEndorsement(cert *x509.Certificate, kind SigningKey) (*endorsement, error) {
	e := &endorsement{cert: cert}
	var ok bool
	if e.key, ok = cert.PublicKey.(*ecdsa.PublicKey); !ok || e.key.Curve != elliptic.P384() {
		return nil, errors.New("the certificate's key is not one of P-384")
	}
	exts, err := extensions(cert)
	if err != nil {
		return nil, err
	}
	if e.product, err = ia5(exts, oidProduct); err != nil {
		return nil, err
	}
	if e.tcb, err = certifiedTCB(exts); err != nil {
		return nil, err
	}
	hwid, isChip := exts[oidHWID]
	_, isLoaded := exts[oidCSP]
	switch {
	case kind == VCEK && isChip && !isLoaded:
		e.hwid, err = octets(hwid)
	case kind == VLEK && isLoaded && !isChip:
		e.csp, err = ia5(exts, oidCSP)
	default:
		err = fmt.Errorf("the certificate is not one of a %s: HWID %t, CSP_ID %t", kind, isChip, isLoaded)
	}
	return e, err
}

// extensions returns AMD's extensions by their arcs below amdOID. An extension may stand there once.
func extensions(cert *x509.Certificate) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, x := range cert.Extensions {
		if len(x.Id) <= len(amdOID) || !slices.Equal(x.Id[:len(amdOID)], amdOID) {
			continue
		}
		arc := strings.TrimPrefix(x.Id.String(), amdOID.String()+".")
		if _, twice := out[arc]; twice {
			return nil, fmt.Errorf("extension %s stands in the certificate twice", x.Id)
		}
		out[arc] = x.Value
	}
	return out, nil
}

func certifiedTCB(exts map[string][]byte) (t TCB, err error) {
	for _, p := range []struct {
		arc string
		to  *uint8
	}{{oidBoot, &t.Bootloader}, {oidTEE, &t.TEE}, {oidSNP, &t.SNP}, {oidMicrocode, &t.Microcode}, {oidFMC, &t.FMC}} {
		if *p.to, err = level(exts, p.arc, p.arc != oidFMC); err != nil {
			return TCB{}, err
		}
	}
	for _, arc := range reservedSPLs {
		l, err := level(exts, arc, false)
		if err != nil {
			return TCB{}, err
		}
		if l != 0 {
			return TCB{}, fmt.Errorf("extension %s: level %d of a part that is not known", arc, l)
		}
	}
	return t, nil
}

// level decodes a patch level. One that need not be there is 0.
func level(exts map[string][]byte, arc string, required bool) (uint8, error) {
	der, ok := exts[arc]
	if !ok && !required {
		return 0, nil
	}
	var v int
	rest, err := asn1.Unmarshal(der, &v)
	if err != nil || len(rest) > 0 || v < 0 || v > 255 {
		return 0, fmt.Errorf("extension %s of the certificate is no patch level: %x", arc, clip(der))
	}
	return uint8(v), nil
}

func ia5(exts map[string][]byte, arc string) (string, error) {
	der := exts[arc]
	var s string
	rest, err := asn1.UnmarshalWithParams(der, &s, "ia5")
	if err != nil || len(rest) > 0 || s == "" || len(der) == 0 || der[0] != asn1.TagIA5String {
		return "", fmt.Errorf("extension %s of the certificate is no text: %x", arc, clip(der))
	}
	return s, nil
}

// octets decodes an HWID: 64 or 8 bytes as they are, or a DER OCTET STRING of as many.
func octets(v []byte) ([]byte, error) {
	if len(v) == 64 || len(v) == 8 {
		return v, nil
	}
	var inner []byte
	rest, err := asn1.Unmarshal(v, &inner)
	if err != nil || len(rest) > 0 || len(inner) != 64 && len(inner) != 8 {
		return nil, fmt.Errorf("the certificate's HWID is neither 64 nor 8 bytes: %x", clip(v))
	}
	return inner, nil
}

func clip(b []byte) []byte { return b[:min(len(b), 80)] }
