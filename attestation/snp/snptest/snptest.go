// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package snptest makes attestation reports and certificates of SNP for tests, with roots of its own. It covers what no
// published evidence does: every product, every version of the report, both kinds of keys, lists of revoked
// certificates. Its private keys lie beside it, so that they prove nothing.
package snptest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed" // the keys
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
)

//go:embed root.key
var rootPEM []byte

//go:embed issuer.key
var issuerPEM []byte

// Now is a time at which all certificates are valid.
var Now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// Chip is the id of the chip. Turin uses the first eight bytes.
var Chip = [64]byte{0xC0, 0xC0, 1, 2, 3, 4, 5, 6}

// Spec describes a report and the certificates that belong to it. The zero Spec is a report of version 3 by a Milan.
type Spec struct {
	Product snp.Product
	Version uint32
	Key     snp.SigningKey
	// TCB are the levels in the certificate; the report has the same ones everywhere.
	TCB snp.TCB
	// HWID changes the form of the extension: "der" (OCTET STRING, the default) or "raw".
	HWID string
	// Name is the product's name in the certificate; the default belongs to Product.
	Name string
	// Edit changes the report before it is signed.
	Edit func(report []byte)
	// Extensions changes AMD's extensions of the certificate.
	Extensions func([]pkix.Extension) []pkix.Extension
	// Certificate changes the certificate's other fields, Issuer those of ASK or ASVK.
	Certificate, Issuer func(*x509.Certificate)
	// Revoked puts ASK and ASVK on the list of revoked certificates.
	Revoked bool
	// List changes the list of revoked certificates.
	List func(*x509.RevocationList)
}

// Made is evidence with what its verification needs.
type Made struct {
	Evidence attestation.Evidence
	// Leaf, Middle, Root and List are DER. The verifier has the root, too.
	Leaf, Middle, Root, List []byte
	Verifier                 snp.Verifier

	key *ecdsa.PrivateKey // of the leaf
}

// Collateral returns the certificates and the list, at Now.
func (m *Made) Collateral() attestation.Collateral {
	kind := snp.KindVCEK
	if snp.SigningKey(m.Evidence.Report[0x48]>>2&7) == snp.VLEK {
		kind = snp.KindVLEK
	}
	return attestation.Collateral{Now: Now, Documents: []attestation.Document{
		{Kind: kind, Name: "leaf", Data: m.Leaf},
		{Kind: snp.KindChain, Name: "chain", Data: m.Middle},
		{Kind: snp.KindCRL, Name: "list", Data: m.List},
	}}
}

// Make makes evidence.
func Make(tb testing.TB, s Spec) *Made {
	tb.Helper()
	s.defaults()
	root := s.root(tb)
	m := &Made{Root: root.Raw, Verifier: snp.NewVerifier(map[snp.Product]snp.Issuers{s.Product: {Root: root}})}
	middle := s.issuer()
	middleKey := issuerKey()
	m.Middle = once(s.Issuer == nil, string(s.Product)+middle.Subject.CommonName, func() []byte {
		return sign(tb, middle, root, &middleKey.PublicKey, rootKey())
	})
	leafKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(tb, err)
	leaf := template("SEV-"+strings.ToUpper(s.Key.String()), 0x51)
	leaf.BasicConstraintsValid = false
	leaf.ExtraExtensions = s.extensions(tb)
	apply(s.Certificate, leaf)
	m.key = leafKey
	m.Leaf = sign(tb, leaf, middle, &leafKey.PublicKey, middleKey)
	m.List = once(s.List == nil && !s.Revoked, "list of "+string(s.Product), func() []byte {
		list := s.list(middle)
		der, err := x509.CreateRevocationList(rand.Reader, list, root, rootKey())
		must(tb, err)
		return der
	})
	m.Evidence = attestation.Evidence{Type: attestation.SNP, Report: s.report(tb, leafKey)}
	return m
}

// made are documents that many tests use, by name: a signature by such a key takes long.
var made sync.Map

// once makes a document, or returns the one that is there if it is an ordinary one.
func once(ordinary bool, name string, make func() []byte) []byte {
	if !ordinary {
		return make()
	}
	if b, ok := made.Load(name); ok {
		return b.([]byte)
	}
	b, _ := made.LoadOrStore(name, make())
	return b.([]byte)
}

func (s *Spec) root(tb testing.TB) *x509.Certificate {
	tb.Helper()
	c := template("ARK-"+string(s.Product), 1)
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	der := once(true, "root of "+string(s.Product), func() []byte {
		return sign(tb, c, c, &rootKey().PublicKey, rootKey())
	})
	root, err := x509.ParseCertificate(der)
	must(tb, err)
	return root
}

// issuer describes ASK or ASVK.
func (s *Spec) issuer() *x509.Certificate {
	name := "SEV-"
	if s.Key == snp.VLEK {
		name += "VLEK-"
	}
	c := template(name+string(s.Product), 2)
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
	apply(s.Issuer, c)
	return c
}

func (s *Spec) list(middle *x509.Certificate) *x509.RevocationList {
	l := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: Now.AddDate(0, -1, 0), NextUpdate: Now.AddDate(0, 1, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
	}
	if s.Revoked {
		l.RevokedCertificateEntries = []x509.RevocationListEntry{
			{SerialNumber: middle.SerialNumber, RevocationTime: Now.AddDate(0, -2, 0)},
		}
	}
	apply(s.List, l)
	return l
}

func (s *Spec) defaults() {
	if s.Product == "" {
		s.Product = snp.Milan
	}
	if s.Version == 0 {
		s.Version = 3
	}
	if s.TCB == (snp.TCB{}) {
		s.TCB = snp.TCB{Bootloader: 4, TEE: 1, SNP: 24, Microcode: 219}
		if s.Product == snp.Turin {
			s.TCB.FMC = 2
		}
	}
	if s.Name == "" {
		s.Name = string(s.Product)
		if s.Key == snp.VCEK {
			s.Name += "-B0"
		}
	}
}

func apply[T any](edit func(*T), v *T) {
	if edit != nil {
		edit(v)
	}
}

func template(name string, serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), SignatureAlgorithm: x509.SHA384WithRSAPSS, BasicConstraintsValid: true,
		Subject:   pkix.Name{Organization: []string{"Tests of coco"}, CommonName: name},
		NotBefore: Now.AddDate(-1, 0, 0), NotAfter: Now.AddDate(1, 0, 0),
	}
}

func sign(tb testing.TB, c, parent *x509.Certificate, pub any, by *rsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, by)
	must(tb, err)
	return der
}

// The keys are decoded once, which takes longer than to use them.
var (
	rootKey   = sync.OnceValue(func() *rsa.PrivateKey { return key(rootPEM) })
	issuerKey = sync.OnceValue(func() *rsa.PrivateKey { return key(issuerPEM) })
)

func key(text []byte) *rsa.PrivateKey {
	block, _ := pem.Decode(text)
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		panic(err)
	}
	return k.(*rsa.PrivateKey)
}

// OID returns an extension's id below AMD's arc.
func OID(arcs ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arcs...)
}

// extensions are those of AMD's certificates.
func (s *Spec) extensions(tb testing.TB) []pkix.Extension {
	tb.Helper()
	out := []pkix.Extension{
		{Id: OID(1), Value: der(tb, 1, "")},
		{Id: OID(2), Value: der(tb, s.Name, "ia5")},
		{Id: OID(3, 1), Value: der(tb, int(s.TCB.Bootloader), "")},
		{Id: OID(3, 2), Value: der(tb, int(s.TCB.TEE), "")},
		{Id: OID(3, 3), Value: der(tb, int(s.TCB.SNP), "")},
		{Id: OID(3, 8), Value: der(tb, int(s.TCB.Microcode), "")},
	}
	if s.Product == snp.Turin {
		out = append(out, pkix.Extension{Id: OID(3, 9), Value: der(tb, int(s.TCB.FMC), "")})
	}
	chip := Chip[:]
	if s.Product == snp.Turin {
		chip = Chip[:8]
	}
	switch {
	case s.Key == snp.VLEK:
		out = append(out, pkix.Extension{Id: OID(5), Value: der(tb, "provider.example", "ia5")})
	case s.HWID == "raw":
		out = append(out, pkix.Extension{Id: OID(4), Value: chip})
	default:
		out = append(out, pkix.Extension{Id: OID(4), Value: der(tb, chip, "")})
	}
	if s.Extensions != nil {
		out = s.Extensions(out)
	}
	return out
}

func der(tb testing.TB, v any, params string) []byte {
	tb.Helper()
	b, err := asn1.MarshalWithParams(v, params)
	must(tb, err)
	return b
}

// RawTCB returns levels as a report of the product has them.
func RawTCB(p snp.Product, t snp.TCB) []byte {
	if p == snp.Turin {
		return []byte{t.FMC, t.Bootloader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return []byte{t.Bootloader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
}

func (s *Spec) report(tb testing.TB, k *ecdsa.PrivateKey) []byte {
	tb.Helper()
	b := make([]byte, snp.ReportSize)
	le := binary.LittleEndian
	le.PutUint32(b, s.Version)
	le.PutUint64(b[8:], 0x3001F)
	le.PutUint32(b[0x34:], 1)
	le.PutUint64(b[0x40:], uint64(snp.PlatformSMT|snp.PlatformAliasCheck))
	le.PutUint32(b[0x48:], uint32(s.Key)<<2)
	for i := range 48 {
		b[0x90+i] = byte(i + 1) // MEASUREMENT
	}
	for i := range 64 {
		b[0x50+i] = byte(0xA0 + i) // REPORT_DATA
	}
	for i := range 32 {
		b[0xC0+i] = byte(0x40 + i) // HOST_DATA
	}
	for _, at := range []int{0x38, 0x180, 0x1E0, 0x1F0} {
		copy(b[at:], RawTCB(s.Product, s.TCB))
	}
	if s.Version >= 3 {
		copy(b[0x188:], map[snp.Product][]byte{
			snp.Milan: {0x19, 0x01, 1}, snp.Genoa: {0x19, 0x11, 1}, snp.Turin: {0x1A, 0x02, 1},
		}[s.Product])
	}
	if s.Version >= 5 {
		le.PutUint64(b[0x1F8:], 3)
		le.PutUint64(b[0x200:], 7)
	}
	chip := Chip
	copy(b[0x1A0:], chip[:])
	for _, at := range []int{0x1E8, 0x1EC} {
		copy(b[at:], []byte{29, 55, 1}) // build, minor, major
	}
	if s.Edit != nil {
		s.Edit(b)
	}
	Sign(tb, b, k)
	return b
}

// Sign puts the signature of a key on a report.
func Sign(tb testing.TB, report []byte, k *ecdsa.PrivateKey) {
	tb.Helper()
	digest := sha512.Sum384(report[:0x2A0])
	r, s, err := ecdsa.Sign(rand.Reader, k, digest[:])
	must(tb, err)
	for i, n := range []*big.Int{r, s} {
		v := n.FillBytes(make([]byte, 72))
		slices.Reverse(v)
		copy(report[0x2A0+72*i:], v)
	}
}

// GUIDs of the host's certificate table.
const (
	GUIDVCEK = "63da758de6644564adc5f4b93be8accd"
	GUIDVLEK = "a8074bc2a25a483eaae639c045a0b8a1"
	GUIDASK  = "4ab7b379bbac4fe4a02f05aef327c782"
)

// Entry is an entry of the host's certificate table.
type Entry struct {
	GUID string
	Data []byte
}

// Table returns a certificate table.
func Table(tb testing.TB, entries ...Entry) []byte {
	tb.Helper()
	at := (len(entries) + 1) * 24
	head := make([]byte, at)
	var data []byte
	for i, e := range entries {
		guid, err := hex.DecodeString(e.GUID)
		must(tb, err)
		copy(head[i*24:], guid)
		binary.LittleEndian.PutUint32(head[i*24+16:], uint32(at+len(data)))
		binary.LittleEndian.PutUint32(head[i*24+20:], uint32(len(e.Data)))
		data = append(data, e.Data...)
	}
	return append(head, data...)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
