// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"testing"

	"github.com/coco-shim/coco/attestation"
)

// FuzzDecode gives any bytes to the decoders that stand before the first signature: report, host's table, certificates
// and lists. They must not panic, and what they return must lie within their input.
func FuzzDecode(f *testing.F) {
	report := make([]byte, ReportSize)
	report[0], report[10], report[0x34] = 5, 3, 1
	f.Add(report, make([]byte, 2*entrySize), milanPEM)
	f.Fuzz(func(t *testing.T, report, table, certs []byte) {
		if r, err := Parse(report); err == nil {
			if lines, err := productsFor(r); err == nil && len(lines) > 0 {
				r.claims(lines[0])
				vcekRequest(lines[0], r)
				r.givenBy(table, lines)
			}
		} else if f, ok := attestation.FailureOf(err); !ok || f.Code.Explain().Class == "" {
			t.Errorf("not a failure with a known code: %v", err)
		}
		total := 0
		if entries, err := parseTable(table); err == nil {
			for _, e := range entries {
				total = max(total, len(e))
			}
		}
		if total > len(table) {
			t.Errorf("an entry of %d bytes in a table of %d", total, len(table))
		}
		if found, err := certificates(certs); err == nil && (len(found) == 0 || len(found) > maxCertificates) {
			t.Errorf("%d certificates", len(found))
		}
		if list, err := parseCRL(certs); err == nil && list.NextUpdate.IsZero() {
			t.Error("a list without end")
		}
	})
}

// FuzzExtensions gives any values to the decoder of AMD's extensions. A patch level that it returns was encoded so.
func FuzzExtensions(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{2, 1, 24}, make([]byte, 64), []byte("\x16\x08Milan-B0"), true)
	f.Add([]byte{2, 2, 0, 255}, make([]byte, 8), []byte("\x16\x01a"), false)
	f.Fuzz(func(t *testing.T, level, id, name []byte, chip bool) {
		oid := func(arcs ...int) asn1.ObjectIdentifier { return append(slices.Clone(amdOID), arcs...) }
		c := &x509.Certificate{PublicKey: &key.PublicKey, Extensions: []pkix.Extension{
			{Id: oid(2), Value: name},
			{Id: oid(3, 1), Value: level},
			{Id: oid(3, 2), Value: level},
			{Id: oid(3, 3), Value: level},
			{Id: oid(3, 8), Value: level},
		}}
		kind, arc := VLEK, 5
		if chip {
			kind, arc = VCEK, 4
		}
		c.Extensions = append(c.Extensions, pkix.Extension{Id: oid(arc), Value: id})
		e, err := parseEndorsement(c, kind)
		if err != nil {
			return
		}
		der, err := asn1.Marshal(int(e.tcb.SNP))
		if err != nil || !slices.Equal(der, level) {
			t.Errorf("%x is read as level %d", level, e.tcb.SNP)
		}
		if chip && len(e.hwid) != 64 && len(e.hwid) != 8 || !chip && e.csp == "" || e.product == "" {
			t.Errorf("an endorsement without what it must have: %+v", e)
		}
	})
}
