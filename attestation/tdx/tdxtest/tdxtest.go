// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tdxtest plays a platform with TDX for tests: keys and certificates of a root of its own, quotes of each type
// of
// body, and the documents that Intel would publish on it. A document is right unless a test edits it before it
// is signed, so that a test breaks one thing and all signatures still hold.
package tdxtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// Now is a time at which everything is valid.
var Now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// Values that the platform has.
const (
	FMSPC = "90c06f000000"
	pceID = "0000"
)

// Issuer is a key with its certificate.
type Issuer struct {
	Key  *ecdsa.PrivateKey
	Cert *x509.Certificate
}

// Platform is a platform with TDX and the authority that vouches for it.
type Platform struct {
	Root, CA, PCK, Signer Issuer
	attestationKey        *ecdsa.PrivateKey
}

// CertEdit changes a certificate before it is signed.
type CertEdit func(subject string, c *x509.Certificate)

// New makes a platform. The edit may be nil.
func New(t testing.TB, edit CertEdit) *Platform {
	t.Helper()
	p := &Platform{attestationKey: newKey(t)}
	p.Root = Issue(t, nil, "Intel SGX Root CA", edit)
	p.CA = Issue(t, &p.Root, "Intel SGX PCK Platform CA", edit)
	p.Signer = Issue(t, &p.Root, "Intel SGX TCB Signing", edit)
	p.PCK = Issue(t, &p.CA, "Intel SGX PCK Certificate", edit)
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var serial int64 = 100

// Issue makes a key and has the parent certify it; without a parent it certifies itself. The edit may be nil.
func Issue(t testing.TB, parent *Issuer, subject string, edit CertEdit) Issuer {
	t.Helper()
	serial++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: name(subject),
		NotBefore: Now.AddDate(-1, 0, 0), NotAfter: Now.AddDate(1, 0, 0), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(subject),
		CRLDistributionPoints: []string{"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"},
	}
	switch subject {
	case "Intel SGX Root CA", "Intel SGX PCK Platform CA":
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	case "Intel SGX PCK Certificate":
		c.ExtraExtensions = []pkix.Extension{{Id: oid(), Value: SGXExtension(t, nil)}}
	}
	if edit != nil {
		edit(subject, c)
	}
	i := Issuer{Key: newKey(t)}
	from, by := c, i.Key
	if parent != nil {
		from, by = parent.Cert, parent.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, from, i.Key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	if i.Cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return i
}

// name returns a subject with the members that Intel's certificates have, since other verifiers compare them.
func name(common string) pkix.Name {
	return pkix.Name{
		CommonName: common, Organization: []string{"Intel Corporation"}, Locality: []string{"Santa Clara"},
		Province: []string{"CA"}, Country: []string{"US"},
	}
}

func oid(tail ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, tail...)
}

// Member is one pair of the SGX extension.
type Member struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// SGXExtension returns the extension of a PCK certificate. The edit may be nil; its argument are the extension's
// members
// and those of the TCB.
func SGXExtension(t testing.TB, edit func(members, tcb *[]Member)) []byte {
	t.Helper()
	fmspc, err := hex.DecodeString(FMSPC)
	if err != nil {
		t.Fatal(err)
	}
	var tcb []Member
	for i := range 16 {
		tcb = append(tcb, Member{oid(2, i+1), 5})
	}
	tcb = append(tcb, Member{oid(2, 17), 13}, Member{oid(2, 18), bytes.Repeat([]byte{5}, 16)})
	members := []Member{
		{oid(1), make([]byte, 16)},
		{oid(3), []byte{0, 0}},
		{oid(4), fmspc},
		{oid(5), asn1.Enumerated(1)},
		{oid(6), bytes.Repeat([]byte{0x77}, 16)},
		{oid(7), asn1.RawValue{FullBytes: sequence(t, []Member{{oid(7, 1), true}, {oid(7, 2), true}, {oid(7, 3), false}})}},
	}
	if edit != nil {
		edit(&members, &tcb)
	}
	members = append(members, Member{oid(2), asn1.RawValue{FullBytes: sequence(t, tcb)}})
	return sequence(t, members)
}

func sequence(t testing.TB, members []Member) []byte {
	t.Helper()
	var body []byte
	for _, m := range members {
		id := marshal(t, m.ID)
		body = append(body, marshal(t, asn1.RawValue{
			Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true,
			Bytes: append(id, marshal(t, m.Value)...),
		})...)
	}
	return marshal(t, asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Parts are a quote before it is signed.
type Parts struct {
	Header   []byte
	Type     uint16 // of the body; version 4 has none
	Size     uint32 // stated in version 5
	Body     []byte
	QEReport []byte
	QEAuth   []byte
	// Bind puts the hash of attestation key and QEAuth into QEReport.
	Bind bool
	// QuoteCert and QECert are the types of certification data.
	QuoteCert, QECert uint16
	Chain             []byte
	// QuoteTail and QETail follow the signature's and the quoting enclave's data.
	QuoteTail, QETail []byte
}

// Offsets in Parts.Body and Parts.QEReport.
const (
	TCBSVN, MRSeam, MRSignerSeam, SeamAttributes, Attributes, XFAM    = 0, 16, 64, 112, 120, 128
	MRTD, MRConfigID, MROwner, MROwnerConfig, RTMR0, ReportData       = 136, 184, 232, 280, 328, 520
	TCBSVN2, MRServiceTD, Extension                                   = 584, 600, 648
	QEMisc, QEAttributes, QEMRSigner, QEProdID, QESVN, QEReportedData = 16, 48, 128, 256, 258, 320
)

// Quote makes a quote with a type of body (2, 3, 4), of version 4 for type 0. The edit may be nil. Fields of the body
// are
// filled with their own bytes, such that each differs.
func (p *Platform) Quote(t testing.TB, bodyType tdx.BodyType, edit func(*Parts)) []byte {
	t.Helper()
	parts := &Parts{
		Header: make([]byte, 48), Type: uint16(bodyType), Body: make([]byte, 584), QEReport: make([]byte, 384),
		QEAuth: make([]byte, 32),
		Bind:   true, QuoteCert: 6, QECert: 5, Chain: PEM(p.PCK.Cert, p.CA.Cert, p.Root.Cert),
	}
	le := binary.LittleEndian
	vendor, err := hex.DecodeString("939a7233f79c4ca9940a0db3957f0607")
	if err != nil {
		t.Fatal(err)
	}
	le.PutUint16(parts.Header, 5)
	le.PutUint16(parts.Header[2:], 2)
	le.PutUint32(parts.Header[4:], 0x81)
	copy(parts.Header[12:], vendor)
	switch bodyType {
	case 0:
		le.PutUint16(parts.Header, 4)
	case tdx.TD15:
		parts.Body = make([]byte, 648)
	case tdx.TD15Ext:
		parts.Body = make([]byte, 885)
	}
	parts.Size = uint32(len(parts.Body))
	for i := range parts.Body[MRTD:] {
		parts.Body[MRTD+i] = byte((MRTD + i) * 7)
	}
	copy(parts.Body[TCBSVN:], []byte{6, 1, 5, 5})
	if len(parts.Body) > TCBSVN2 {
		copy(parts.Body[TCBSVN2:], []byte{6, 1, 5, 5, 15: 0})
		copy(parts.Body[MRServiceTD:], make([]byte, 48))
	}
	copy(parts.Body[MRSeam:], bytes.Repeat([]byte{0x5e}, 48))
	le.PutUint64(parts.Body[Attributes:], 1<<28)
	le.PutUint64(parts.Body[XFAM:], 0x602e7)
	copy(parts.Body[RTMR0:], make([]byte, 4*48))
	parts.QEReport[QEAttributes] = 0x11
	copy(parts.QEReport[QEMRSigner:], bytes.Repeat([]byte{0xdc}, 32))
	le.PutUint16(parts.QEReport[QEProdID:], 2)
	le.PutUint16(parts.QEReport[QESVN:], 8)
	if edit != nil {
		edit(parts)
	}
	return p.assemble(t, parts)
}

func (p *Platform) assemble(t testing.TB, q *Parts) []byte {
	t.Helper()
	le := binary.LittleEndian
	point, err := p.attestationKey.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	key := point[1:]
	if q.Bind {
		sum := sha256.Sum256(append(bytes.Clone(key), q.QEAuth...))
		copy(q.QEReport[QEReportedData:], sum[:])
	}
	quote := bytes.Clone(q.Header)
	if le.Uint16(quote) == 5 {
		quote = le.AppendUint32(le.AppendUint16(quote, q.Type), q.Size)
	}
	quote = append(quote, q.Body...)
	qe := append(bytes.Clone(q.QEReport), Sign(t, p.PCK.Key, q.QEReport)...)
	qe = append(le.AppendUint16(qe, uint16(len(q.QEAuth))), q.QEAuth...)
	qe = append(block(le.AppendUint16(qe, q.QECert), q.Chain), q.QETail...)
	sig := append(Sign(t, p.attestationKey, quote), key...)
	sig = append(block(le.AppendUint16(sig, q.QuoteCert), qe), q.QuoteTail...)
	return block(quote, sig)
}

func block(b, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
}

// Sign returns r and s over the SHA-256 of a message.
func Sign(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// PEM encodes certificates.
func PEM(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// Documents are Intel's documents before they are signed.
type Documents struct {
	TCBInfo, QEIdentity map[string]any
	PCKCRL, RootCRL     x509.RevocationList
	// SignerChain are the certificates of the signer of TCB info and QE identity.
	SignerChain []byte
	// CRLSigners sign the lists.
	PCKCRLSigner, RootCRLSigner Issuer
}

// Level returns one TCB level, with the same SVN in each component.
func Level(svn, pcesvn int, status string, advisories ...string) map[string]any {
	components := make([]any, 16)
	for i := range components {
		components[i] = map[string]any{"svn": svn}
	}
	tee := make([]any, 16)
	for i := range tee {
		tee[i] = map[string]any{"svn": 0}
	}
	tee[2] = map[string]any{"svn": svn}
	tcb := map[string]any{"sgxtcbcomponents": components, "pcesvn": pcesvn, "tdxtcbcomponents": tee}
	return level(tcb, "2026-01-01T00:00:00Z", status, advisories)
}

func level(tcb map[string]any, date, status string, advisories []string) map[string]any {
	l := map[string]any{"tcb": tcb, "tcbDate": date, "tcbStatus": status}
	if len(advisories) > 0 {
		l["advisoryIDs"] = advisories
	}
	return l
}

// ModuleLevel returns one level of a module or an enclave.
func ModuleLevel(svn int, status string, advisories ...string) map[string]any {
	return level(map[string]any{"isvsvn": svn}, "2026-02-01T00:00:00Z", status, advisories)
}

// Collateral returns the documents on the platform. The edit may be nil.
func (p *Platform) Collateral(t testing.TB, edit func(*Documents)) attestation.Collateral {
	t.Helper()
	zeros := hex.EncodeToString(make([]byte, 48))
	module := func(id string, levels ...any) map[string]any {
		return map[string]any{
			"id": id, "mrsigner": zeros, "attributes": "0000000000000000",
			"attributesMask": "FFFFFFFFFFFFFFFF", "tcbLevels": levels,
		}
	}
	list := x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: Now.AddDate(0, 0, -1),
		NextUpdate: Now.AddDate(0, 0, 29),
	}
	issued, next := Now.AddDate(0, 0, -1).Format(time.RFC3339), Now.AddDate(0, 0, 29).Format(time.RFC3339)
	d := &Documents{
		TCBInfo: map[string]any{
			"id": "TDX", "version": 3, "issueDate": issued, "nextUpdate": next, "fmspc": FMSPC, "pceId": pceID, "tcbType": 0,
			"tcbEvaluationDataNumber": 18, "tdxModule": module(""),
			"tdxModuleIdentities": []any{
				module("TDX_03", ModuleLevel(3, "UpToDate")),
				module("TDX_01", ModuleLevel(6, "UpToDate"), ModuleLevel(4, "OutOfDate", "INTEL-SA-00004")),
			},
			"tcbLevels": []any{
				Level(5, 13, "UpToDate"), Level(4, 13, "SWHardeningNeeded", "INTEL-SA-00001"),
				Level(3, 5, "OutOfDate", "INTEL-SA-00001", "INTEL-SA-00002"), Level(2, 5, "Revoked"),
			},
		},
		QEIdentity: map[string]any{
			"id": "TD_QE", "version": 2, "issueDate": issued, "nextUpdate": next, "tcbEvaluationDataNumber": 18,
			"miscselect":     "00000000",
			"miscselectMask": "FFFFFFFF", "attributes": "11000000000000000000000000000000",
			"attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
			"mrsigner":       hex.EncodeToString(bytes.Repeat([]byte{0xdc}, 32)), "isvprodid": 2,
			"tcbLevels": []any{ModuleLevel(8, "UpToDate"), ModuleLevel(4, "OutOfDate", "INTEL-SA-00003")},
		},
		PCKCRL: list, RootCRL: list, SignerChain: PEM(p.Signer.Cert, p.Root.Cert), PCKCRLSigner: p.CA, RootCRLSigner: p.Root,
	}
	if edit != nil {
		edit(d)
	}
	return attestation.Collateral{Now: Now, Documents: []attestation.Document{
		{Kind: tdx.KindTCBInfo, Name: "tcb-info.json", Data: p.signJSON(t, "tcbInfo", d.TCBInfo), Chain: d.SignerChain},
		{
			Kind: tdx.KindQEIdentity, Name: "qe-identity.json", Data: p.signJSON(t, "enclaveIdentity", d.QEIdentity),
			Chain: d.SignerChain,
		},
		{Kind: tdx.KindPCKCRL, Name: "pck.crl", Data: crl(t, d.PCKCRL, d.PCKCRLSigner)},
		{Kind: tdx.KindRootCRL, Name: "root.crl", Data: crl(t, d.RootCRL, d.RootCRLSigner)},
	}}
}

func crl(t testing.TB, list x509.RevocationList, by Issuer) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &list, by.Cert, by.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (p *Platform) signJSON(t testing.TB, member string, content any) []byte {
	t.Helper()
	signed, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{
		member:      json.RawMessage(signed),
		"signature": hex.EncodeToString(Sign(t, p.Signer.Key, signed)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Expectations returns expectations under the platform's own root that leave everything to the caller.
func (p *Platform) Expectations() tdx.Expectations {
	var e tdx.Expectations
	e.Root = &p.Root.Key.PublicKey
	e.Undecided = []attestation.Item{attestation.ItemReportData, attestation.ItemInitData, attestation.ItemMeasurement}
	return e
}

// EventLog encodes events in the form of a CCEL area.
func EventLog(events ...ccel.Event) []byte {
	le := binary.LittleEndian
	b := make([]byte, 32)
	le.PutUint32(b, 1)
	le.PutUint32(b[4:], uint32(ccel.EvNoAction))
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
	le.PutUint32(b[28:], uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, e.MR), uint32(e.Type)), 1)
		b = append(le.AppendUint16(b, 0x0c), e.Digest...)
		b = block(b, e.Data)
	}
	return append(b, bytes.Repeat([]byte{0xff}, 64)...)
}

// Event returns an event whose digest is that of its data.
func Event(mr uint32, kind ccel.EventType, data string) ccel.Event {
	sum := sha512.Sum384([]byte(data))
	return ccel.Event{MR: mr, Type: kind, Digest: sum[:], Data: []byte(data)}
}
