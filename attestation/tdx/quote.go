// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"encoding/binary"
	"fmt"

	"github.com/coco-shim/coco/attestation"
)

// Lengths of a quote's parts (DCAP Quoting Library API, A.3).
const (
	headerSize    = 48
	bodySize10    = 584
	bodySize15    = 648
	bodySizeExt   = 885
	qeReportSize  = 384
	signatureSize = 64
	keySize       = 64
	// maxQuote bounds what Parse reads. Quotes of today have 5 to 8 KiB.
	maxQuote = 64 << 10
)

// BodyType says which fields the body of a quote has.
type BodyType uint16

// The types of bodies. A quote of version 4 has no type and a body of TD10. TD15Ext is TD15 with fields on migration.
const (
	TD10    BodyType = 2
	TD15    BodyType = 3
	TD15Ext BodyType = 4
)

var bodySizes = map[BodyType]int{TD10: bodySize10, TD15: bodySize15, TD15Ext: bodySizeExt}

// Types of certification data.
const (
	certPCKChain = 5
	certQEReport = 6
)

// Values of a header that this package knows.
const (
	keyECDSA = 2
	teeTDX   = 0x81
)

// vendorIntel is the id of Intel's quoting enclave in a quote's header.
const vendorIntel = "939a7233f79c4ca9940a0db3957f0607"

// Header is the beginning of a quote.
type Header struct {
	Version  uint16
	KeyType  uint16 // 2: ECDSA over P-256
	TEEType  uint32 // 0x81: TDX
	Reserved attestation.Hex
	Vendor   attestation.Hex
	UserData attestation.Hex // its first 16 bytes identify the quoting enclave's installation
}

// Body is what the TDX module reports about a TD.
type Body struct {
	TCBSVN         [16]byte // version and level of the TDX module first
	MRSeam         attestation.Hex
	MRSignerSeam   attestation.Hex
	SeamAttributes uint64
	Attributes     uint64
	XFAM           uint64
	MRTD           attestation.Hex
	MRConfigID     attestation.Hex
	MROwner        attestation.Hex
	MROwnerConfig  attestation.Hex
	RTMR           [4]attestation.Hex
	ReportData     attestation.Hex
	Module15       *Module15 // absent from TD10
}

// Module15 are the fields that TDX module 1.5 adds.
type Module15 struct {
	TCBSVN2     [16]byte // that of the module which runs now, if it was updated below the TD
	MRServiceTD attestation.Hex
	Extension   attestation.Hex // the fields of TD15Ext as they are
}

// Quote is a quote that can be read. Nothing in it is proven.
type Quote struct {
	Header   Header
	BodyType BodyType
	Body     Body

	signed    []byte // header and body, as the attestation key signs them
	signature []byte
	key       []byte // attestation key, x and y
	qe        qeReport
	qeSigned  []byte
	qeSig     []byte
	qeAuth    []byte
	chain     []byte // PEM
}

// qeReport is the report of the quoting enclave (SGX report body).
type qeReport struct {
	miscSelect uint32
	attributes []byte
	mrEnclave  []byte
	mrSigner   []byte
	prodID     uint16
	svn        uint16
	reportData []byte
}

// Parse reads a quote of version 4 or 5. Bytes after the quote are ignored: the kernel gives a buffer of fixed length.
func Parse(b []byte) (*Quote, error) {
	if len(b) > maxQuote {
		return nil, malformed("quote", fmt.Sprintf("at most %d bytes", maxQuote), fmt.Sprintf("%d", len(b)))
	}
	q := &Quote{}
	r := &reader{rest: b}
	if err := q.readHeader(r); err != nil {
		return nil, err
	}
	size, err := q.readBodyType(r)
	if err != nil {
		return nil, err
	}
	body := r.take("body", size)
	if r.failed != nil {
		return nil, r.failed
	}
	q.readBody(body)
	q.signed = b[:len(b)-len(r.rest)]
	return q, q.readSignature(r)
}

func (q *Quote) readHeader(r *reader) error {
	h := r.take("header", headerSize)
	if r.failed != nil {
		return r.failed
	}
	le := binary.LittleEndian
	q.Header = Header{
		Version: le.Uint16(h), KeyType: le.Uint16(h[2:]), TEEType: le.Uint32(h[4:]),
		Reserved: h[8:12], Vendor: h[12:28], UserData: h[28:48],
	}
	switch hd := q.Header; {
	case hd.Version != 4 && hd.Version != 5:
		return unsupported("header.version", "4 or 5", hd.Version)
	case hd.KeyType != keyECDSA:
		return unsupported("header.att_key_type", "2 (ECDSA over P-256)", hd.KeyType)
	case hd.TEEType != teeTDX:
		return unsupported("header.tee_type", "129 (TDX)", hd.TEEType)
	case hd.Vendor.String() != vendorIntel:
		return unsupported("header.vendor_id", vendorIntel, hd.Vendor)
	}
	return nil
}

// readBodyType returns the length of the body. Version 5 states type and length, which must fit each other.
func (q *Quote) readBodyType(r *reader) (int, error) {
	if q.Header.Version == 4 {
		q.BodyType = TD10
		return bodySize10, nil
	}
	h := r.take("body type", 6)
	if r.failed != nil {
		return 0, r.failed
	}
	q.BodyType = BodyType(binary.LittleEndian.Uint16(h))
	stated := binary.LittleEndian.Uint32(h[2:])
	size, known := bodySizes[q.BodyType]
	if !known {
		return 0, unsupported("body.type", "2, 3 or 4 (a TD)", q.BodyType)
	}
	if int64(stated) != int64(size) {
		return 0, malformed("body.size", fmt.Sprintf("%d, the length of type %d", size, q.BodyType), fmt.Sprint(stated))
	}
	return size, nil
}

func (q *Quote) readBody(b []byte) {
	le := binary.LittleEndian
	q.Body = Body{
		TCBSVN: [16]byte(b[:16]), MRSeam: b[16:64], MRSignerSeam: b[64:112],
		SeamAttributes: le.Uint64(b[112:]), Attributes: le.Uint64(b[120:]), XFAM: le.Uint64(b[128:]),
		MRTD: b[136:184], MRConfigID: b[184:232], MROwner: b[232:280], MROwnerConfig: b[280:328],
		RTMR: [4]attestation.Hex{b[328:376], b[376:424], b[424:472], b[472:520]}, ReportData: b[520:584],
	}
	if len(b) >= bodySize15 {
		q.Body.Module15 = &Module15{TCBSVN2: [16]byte(b[584:600]), MRServiceTD: b[600:648], Extension: b[648:]}
	}
}

// readSignature reads what follows the body: signature, attestation key, and the quoting enclave's report with the
// certificates of the key that signs it.
func (q *Quote) readSignature(r *reader) error {
	sig := r.block("signature data")
	q.signature = sig.take("signature", signatureSize)
	q.key = sig.take("attestation key", keySize)
	if err := sig.certType("certification data", certQEReport); err != nil {
		return err
	}
	qe := sig.block("certification data")
	q.qeSigned = qe.take("quoting enclave's report", qeReportSize)
	q.qeSig = qe.take("quoting enclave's signature", signatureSize)
	if n := qe.take("length of authentication data", 2); n != nil {
		q.qeAuth = qe.take("authentication data", int(binary.LittleEndian.Uint16(n)))
	}
	if err := qe.certType("certification data of the quoting enclave", certPCKChain); err != nil {
		return err
	}
	chain := qe.block("certification data of the quoting enclave")
	if chain.failed != nil {
		return chain.failed
	}
	q.chain = chain.rest
	for _, part := range []struct {
		name string
		left []byte
	}{{"signature data", sig.rest}, {"certification data", qe.rest}} {
		if len(part.left) > 0 {
			return malformed(part.name, "no bytes after it", fmt.Sprintf("%d", len(part.left)))
		}
	}
	q.qe.read(q.qeSigned)
	return nil
}

func (p *qeReport) read(b []byte) {
	le := binary.LittleEndian
	*p = qeReport{
		miscSelect: le.Uint32(b[16:]), attributes: b[48:64], mrEnclave: b[64:96], mrSigner: b[128:160],
		prodID: le.Uint16(b[256:]), svn: le.Uint16(b[258:]), reportData: b[320:384],
	}
}

// reader takes bytes from the front. After the first failure it returns nothing.
type reader struct {
	rest   []byte
	failed error
}

func (r *reader) take(what string, n int) []byte {
	if r.failed == nil && n > len(r.rest) {
		r.failed = malformed(what, fmt.Sprintf("%d bytes", n), fmt.Sprintf("%d", len(r.rest)))
	}
	if r.failed != nil {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// block takes a length of four bytes and as many bytes.
func (r *reader) block(what string) *reader {
	n := r.take("length of "+what, 4)
	if n == nil {
		return &reader{failed: r.failed}
	}
	size := binary.LittleEndian.Uint32(n)
	if size > maxQuote {
		r.failed = malformed(what, fmt.Sprintf("at most %d bytes", len(r.rest)), fmt.Sprintf("a length of %d", size))
		return &reader{failed: r.failed}
	}
	b := r.take(what, int(size))
	return &reader{rest: b, failed: r.failed}
}

// certType takes the type of certification data, of which one is supported at each place.
func (r *reader) certType(what string, want uint16) error {
	b := r.take("type of "+what, 2)
	if r.failed != nil {
		return r.failed
	}
	if got := binary.LittleEndian.Uint16(b); got != want {
		return unsupported("type of "+what, fmt.Sprint(want), got)
	}
	return nil
}

func malformed(field, expected, got string) *attestation.Failure {
	return attestation.Fail(attestation.CodeMalformed, field, expected, got, nil)
}

func unsupported(field, expected string, got any) *attestation.Failure {
	return attestation.Fail(attestation.CodeUnsupported, field, expected, fmt.Sprint(got), nil)
}
