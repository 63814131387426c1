// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
)

// Fields of the body that a 1.5 module adds are read at their places.
func TestExtendedBodyIsSplit(t *testing.T) {
	p := tdxtest.New(t, nil)
	c, err := newRound(t, p, tdx.TD15Ext, func(q *tdxtest.Parts) {
		for i, size := range []int{1, 32, 48, 48, 8, 16, 16, 12, 48, 8} {
			at := tdxtest.Extension
			for _, s := range []int{1, 32, 48, 48, 8, 16, 16, 12, 48, 8}[:i] {
				at += s
			}
			copy(q.Body[at:], bytes.Repeat([]byte{byte(i + 1)}, size))
		}
	}, nil).verify()
	if err != nil {
		t.Fatal(err)
	}
	body := c.Details["quote"].(map[string]any)["body"].(map[string]any)
	for i, name := range []string{
		"vmid", "td_id", "dev_info", "init_service_td_hash", "init_service_td_attributes", "init_cpu_svn", "init_tee_tcb_svn",
		"init_tee_fmspc", "cur_service_td_hash", "cur_service_td_attributes",
	} {
		text, ok := body[name].(string)
		if want := string([]byte{'0', "123456789a"[i]}); !ok || text[:2] != want || text[len(text)-2:] != want {
			t.Errorf("%s = %v, want bytes %s", name, body[name], want)
		}
	}
}

func put16(b []byte, at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
func put64(b []byte, at int, v uint64) { binary.LittleEndian.PutUint64(b[at:], v) }

// Each case breaks one thing of the quote, before it is signed.
func TestQuotesAreRefused(t *testing.T) {
	p, other := tdxtest.New(t, nil), tdxtest.New(t, nil)
	for _, tc := range []struct {
		name  string
		body  tdx.BodyType
		edit  func(*tdxtest.Parts)
		code  attestation.Code
		field string
	}{
		{"version 3", 0, func(q *tdxtest.Parts) { put16(q.Header, 0, 3) }, attestation.CodeUnsupported, "header.version"},
		{
			"key of another kind", 0, func(q *tdxtest.Parts) { put16(q.Header, 2, 3) }, attestation.CodeUnsupported,
			"header.att_key_type",
		},
		{"SGX in the header", 0, func(q *tdxtest.Parts) { q.Header[4] = 0 }, attestation.CodeUnsupported, "header.tee_type"},
		{"vendor", 0, func(q *tdxtest.Parts) { q.Header[12]++ }, attestation.CodeUnsupported, "header.vendor_id"},
		{"body of SGX", tdx.TD10, func(q *tdxtest.Parts) { q.Type = 1 }, attestation.CodeUnsupported, "body.type"},
		{"unknown body", tdx.TD10, func(q *tdxtest.Parts) { q.Type = 5 }, attestation.CodeUnsupported, "body.type"},
		{
			"1.0 with the length of 1.5", tdx.TD15, func(q *tdxtest.Parts) { q.Type = 2 }, attestation.CodeMalformed,
			"body.size",
		},
		{
			"1.5 with the length of 1.0", tdx.TD10, func(q *tdxtest.Parts) { q.Type = 3 }, attestation.CodeMalformed,
			"body.size",
		},
		{
			"extended with the length of 1.5", tdx.TD15, func(q *tdxtest.Parts) { q.Type = 4 }, attestation.CodeMalformed,
			"body.size",
		},
		{
			"1.5 with the length of extended", tdx.TD15Ext, func(q *tdxtest.Parts) { q.Type = 3 }, attestation.CodeMalformed,
			"body.size",
		},
		{"stated length too short", tdx.TD15, func(q *tdxtest.Parts) { q.Size-- }, attestation.CodeMalformed, "body.size"},
		{
			"certification data of another type", 0, func(q *tdxtest.Parts) { q.QuoteCert = 5 }, attestation.CodeUnsupported,
			"type of certification data",
		},
		{
			"encrypted PPID", 0, func(q *tdxtest.Parts) { q.QECert = 3 }, attestation.CodeUnsupported,
			"type of certification data of the quoting enclave",
		},
		{
			"bytes after the signature", 0, func(q *tdxtest.Parts) { q.QuoteTail = []byte{0} }, attestation.CodeMalformed,
			"signature data",
		},
		{
			"bytes after the certificates", 0, func(q *tdxtest.Parts) { q.QETail = []byte{0} }, attestation.CodeMalformed,
			"certification data",
		},
		{"no PEM", 0, func(q *tdxtest.Parts) { q.Chain = []byte("none") }, attestation.CodeMalformed, "pck_certificate"},
		{
			"a certificate too few", 0, func(q *tdxtest.Parts) { q.Chain = tdxtest.PEM(p.PCK.Cert, p.CA.Cert) },
			attestation.CodeChain, "pck_certificate",
		},
		{
			"nine certificates", 0, func(q *tdxtest.Parts) { q.Chain = bytes.Repeat(q.Chain, 3) }, attestation.CodeMalformed,
			"pck_certificate",
		},
		{
			"certificates in 64 KiB", 0, func(q *tdxtest.Parts) { q.Chain = append(q.Chain, make([]byte, 60<<10)...) },
			attestation.CodeMalformed, "quote",
		},
		{
			"a certificate too many", 0, func(q *tdxtest.Parts) { q.Chain = append(q.Chain, q.Chain...) },
			attestation.CodeChain, "pck_certificate",
		},
		{"foreign chain", 0, func(q *tdxtest.Parts) {
			q.Chain = tdxtest.PEM(other.PCK.Cert, other.CA.Cert,
				other.Root.Cert)
		}, attestation.CodeChain, "pck_certificate"},
		{
			"foreign CA", 0, func(q *tdxtest.Parts) { q.Chain = tdxtest.PEM(p.PCK.Cert, other.CA.Cert, p.Root.Cert) },
			attestation.CodeChain, "pck_certificate",
		},
		{"foreign key below the CA", 0, func(q *tdxtest.Parts) {
			q.Chain = tdxtest.PEM(other.PCK.Cert, p.CA.Cert,
				p.Root.Cert)
		}, attestation.CodeChain, "pck_certificate"},
		{
			"CA as signer", 0, func(q *tdxtest.Parts) { q.Chain = tdxtest.PEM(p.CA.Cert, p.CA.Cert, p.Root.Cert) },
			attestation.CodeChain, "pck_certificate.subject",
		},
		{
			"attestation key not bound", 0, func(q *tdxtest.Parts) { q.Bind = false }, attestation.CodeSignature,
			"qe_report.report_data",
		},
		{
			"report data of the enclave with a tail", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QEReportedData+63] = 1 },
			attestation.CodeSignature, "qe_report.report_data",
		},
		{
			"enclave of another signer", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QEMRSigner]++ },
			attestation.CodeQEIdentity, "qe_report.mrsigner",
		},
		{
			"enclave of another product", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QEProdID]++ },
			attestation.CodeQEIdentity, "qe_report.isvprodid",
		},
		{
			"enclave with misc bits", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QEMisc] = 1 }, attestation.CodeQEIdentity,
			"qe_report.miscselect",
		},
		{
			"enclave in debug mode", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QEAttributes] |= 2 },
			attestation.CodeQEIdentity, "qe_report.attributes",
		},
		{"old enclave", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QESVN] = 5 }, attestation.CodeTCBStatus, "tcb_status"},
		{
			"enclave older than Intel's list", 0, func(q *tdxtest.Parts) { q.QEReport[tdxtest.QESVN] = 3 },
			attestation.CodeTCBStatus, "qe_report.isvsvn",
		},
		{
			"unknown module", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN+1] = 9 }, attestation.CodeTDXModule,
			"tcb_svn.module",
		},
		{
			"module of another signer", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.MRSignerSeam] = 1 },
			attestation.CodeTDXModule, "mrsigner_seam",
		},
		{
			"module with attributes", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.SeamAttributes+7] = 1 },
			attestation.CodeTDXModule, "seam_attributes",
		},
		{"module 1.0 of another signer", 0, func(q *tdxtest.Parts) {
			q.Body[tdxtest.TCBSVN+1],
				q.Body[tdxtest.MRSignerSeam] = 0, 1
		}, attestation.CodeTDXModule, "mrsigner_seam"},
		{"old module", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN] = 5 }, attestation.CodeTCBStatus, "tcb_status"},
		{
			"module older than Intel's list", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN] = 3 },
			attestation.CodeTCBStatus, "tcb_svn.module",
		},
		{
			"old microcode of TDX", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN+2] = 4 }, attestation.CodeTCBStatus,
			"tcb_status",
		},
		{
			"platform older than Intel's list", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN+2] = 1 },
			attestation.CodeTCBStatus, "tcb_svn",
		},
		{"revoked level", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN+2] = 2 }, attestation.CodeRevoked, "tcb_status"},
		{
			"module of now unknown", tdx.TD15, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN2+1] = 9 },
			attestation.CodeTDXModule, "tee_tcb_svn2.module",
		},
		{
			"module of now older than Intel's list", tdx.TD15Ext, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN2] = 3 },
			attestation.CodeTCBStatus, "tee_tcb_svn2.module",
		},
		{
			"old module now", tdx.TD15, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN2] = 5 }, attestation.CodeTCBStatus,
			"tcb_status",
		},
		{
			"old microcode now", tdx.TD15, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN2+2] = 3 }, attestation.CodeTCBStatus,
			"tcb_status",
		},
		{
			"microcode now older than Intel's list", tdx.TD15, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN2+2] = 1 },
			attestation.CodeTCBStatus, "tee_tcb_svn2",
		},
		{
			"service TD", tdx.TD15, func(q *tdxtest.Parts) { q.Body[tdxtest.MRServiceTD] = 1 }, attestation.CodeMigration,
			"mr_servicetd",
		},
		{"debug", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.Attributes] = 1 }, attestation.CodeDebug, "td_attributes"},
		{
			"another untrusted bit", 0, func(q *tdxtest.Parts) { q.Body[tdxtest.Attributes] = 0x80 }, attestation.CodeDebug,
			"td_attributes",
		},
		{
			"migratable", 0, func(q *tdxtest.Parts) { put64(q.Body, tdxtest.Attributes, 1<<29) }, attestation.CodeMigration,
			"td_attributes",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newRound(t, p, tc.body, tc.edit, nil).verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

// The stated type must fit the version too: a version 4 quote has no type, so its first bytes after the header are
// body.
func TestVersionsAreNotConfused(t *testing.T) {
	p := tdxtest.New(t, nil)
	r := newRound(t, p, 0, nil, nil)
	put16(r.evidence.Report, 0, 5) // now the TCB SVN stands where type and length are
	_, err := r.verify()
	refused(t, err, attestation.CodeUnsupported, "body.type")
	r = newRound(t, p, tdx.TD10, nil, nil)
	put16(r.evidence.Report, 0, 4)
	if _, err = r.verify(); err == nil {
		t.Error("a quote of version 5 verifies as one of version 4")
	}
}

// Signatures of other keys, over the same bytes.
func TestSignaturesAreRefused(t *testing.T) {
	p := tdxtest.New(t, nil)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := newRound(t, p, 0, nil, nil)
	quote := r.evidence.Report
	signed, signature, qe := quote[:48+584], 48+584+4, 48+584+4+128+6
	copy(quote[signature:], tdxtest.Sign(t, other, signed))
	_, err = r.verify()
	refused(t, err, attestation.CodeSignature, "quote.signature")
	copy(quote[qe+384:], tdxtest.Sign(t, other, quote[qe:qe+384]))
	_, err = r.verify()
	refused(t, err, attestation.CodeSignature, "qe_report.signature")
}

// Every flipped bit of a signed part is refused; one of an unsigned part changes no claim.
func TestFlippedBits(t *testing.T) {
	p := tdxtest.New(t, nil)
	r := newRound(t, p, tdx.TD15Ext, nil, nil)
	r.evidence.Report = append(r.evidence.Report, make([]byte, 8)...)
	want, err := r.verify()
	if err != nil {
		t.Fatal(err)
	}
	quote := r.evidence.Report
	signed := 54 + 885 + 4 + 64 + 64 + 6 + 384 + 64 + 2 + 32 + 6
	for i := range quote {
		step := 1
		if i >= signed {
			step = 29 // the chain is long, and its letters are judged by the certificates' signatures
		}
		if i%step != 0 {
			continue
		}
		r.evidence.Report = bytes.Clone(quote)
		r.evidence.Report[i] ^= 1 << (i % 8)
		got, err := r.verify()
		switch {
		case err == nil && i < signed:
			t.Fatalf("bit %d of byte %d is flipped, and the quote verifies", i%8, i)
		case err == nil && !cmp.Equal(want, got):
			t.Fatalf("bit %d of byte %d changes the claims: %s", i%8, i, cmp.Diff(want, got))
		case err != nil:
			if _, ok := attestation.FailureOf(err); !ok {
				t.Fatalf("byte %d: %v is no failure", i, err)
			}
		}
	}
}

func TestTruncatedQuotesAreRefused(t *testing.T) {
	r := newRound(t, tdxtest.New(t, nil), tdx.TD15, nil, nil)
	quote := r.evidence.Report
	for n := range quote {
		r.evidence.Report = quote[:n]
		if _, err := r.verify(); err == nil {
			t.Fatalf("%d of %d bytes verify", n, len(quote))
		}
	}
	r.evidence.Report = make([]byte, 64<<10+1)
	_, err := r.verify()
	refused(t, err, attestation.CodeMalformed, "quote")
}
