// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
)

func levels(d map[string]any) []any { return d["tcbLevels"].([]any) }

// Each case breaks one thing of Intel's documents, before they are signed.
func TestCollateralIsRefused(t *testing.T) {
	p, other := tdxtest.New(t, nil), tdxtest.New(t, nil)
	day := func(n int) string { return tdxtest.Now.AddDate(0, 0, n).Format(time.RFC3339) }
	revoke := func(c *x509.Certificate) []x509.RevocationListEntry {
		return []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(1), RevocationTime: tdxtest.Now.AddDate(0, 0, -2)},
			{SerialNumber: c.SerialNumber, RevocationTime: tdxtest.Now.AddDate(0, 0, -2)},
		}
	}
	critical := []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
	for _, tc := range []struct {
		name  string
		edit  func(*tdxtest.Documents)
		code  attestation.Code
		field string
	}{
		{
			"PCK revoked", func(d *tdxtest.Documents) { d.PCKCRL.RevokedCertificateEntries = revoke(p.PCK.Cert) },
			attestation.CodeRevoked, "pck_certificate[0]",
		},
		{
			"CA revoked", func(d *tdxtest.Documents) { d.RootCRL.RevokedCertificateEntries = revoke(p.CA.Cert) },
			attestation.CodeRevoked, "pck_certificate[1]",
		},
		{
			"signer revoked", func(d *tdxtest.Documents) { d.RootCRL.RevokedCertificateEntries = revoke(p.Signer.Cert) },
			attestation.CodeRevoked, "tdx-tcb-info.signer",
		},
		{
			"root list of another issuer", func(d *tdxtest.Documents) { d.RootCRLSigner = p.CA },
			attestation.CodeCollateralMissing, "intel-root-crl",
		},
		{
			"root list of another root", func(d *tdxtest.Documents) { d.RootCRLSigner = other.Root },
			attestation.CodeCollateralInvalid, "intel-root-crl",
		},
		{
			"PCK list of another CA", func(d *tdxtest.Documents) { d.PCKCRLSigner = other.CA },
			attestation.CodeCollateralInvalid, "intel-pck-crl",
		},
		{
			"PCK list of another issuer", func(d *tdxtest.Documents) { d.PCKCRLSigner = p.Root },
			attestation.CodeCollateralMissing, "intel-pck-crl",
		},
		{
			"partial list", func(d *tdxtest.Documents) { d.PCKCRL.ExtraExtensions = critical },
			attestation.CodeCollateralInvalid, "intel-pck-crl",
		},
		{
			"root list expired", func(d *tdxtest.Documents) { d.RootCRL.NextUpdate = tdxtest.Now.Add(-time.Second) },
			attestation.CodeCollateralExpired, "intel-root-crl",
		},
		{
			"PCK list expired", func(d *tdxtest.Documents) { d.PCKCRL.NextUpdate = tdxtest.Now.Add(-time.Second) },
			attestation.CodeCollateralExpired, "intel-pck-crl",
		},
		{
			"PCK list early", func(d *tdxtest.Documents) { d.PCKCRL.ThisUpdate = tdxtest.Now.Add(time.Second) },
			attestation.CodeCollateralEarly, "intel-pck-crl",
		},
		{
			"no signer", func(d *tdxtest.Documents) { d.SignerChain = nil }, attestation.CodeCollateralMissing,
			"tdx-tcb-info.signer",
		},
		{
			"signer is no PEM", func(d *tdxtest.Documents) { d.SignerChain = []byte("x") }, attestation.CodeCollateralInvalid,
			"tdx-tcb-info.signer",
		},
		{"signer of another root", func(d *tdxtest.Documents) {
			d.SignerChain = tdxtest.PEM(other.Signer.Cert,
				other.Root.Cert)
		}, attestation.CodeChain, "tdx-tcb-info.signer"},
		{
			"signer is the CA", func(d *tdxtest.Documents) { d.SignerChain = tdxtest.PEM(p.CA.Cert, p.Root.Cert) },
			attestation.CodeChain, "tdx-tcb-info.signer.subject",
		},
		{"signer below the CA", func(d *tdxtest.Documents) {
			d.SignerChain = tdxtest.PEM(p.PCK.Cert, p.CA.Cert,
				p.Root.Cert)
		}, attestation.CodeChain, "tdx-tcb-info.signer"},
		{
			"TCB info of another platform", func(d *tdxtest.Documents) { d.TCBInfo["fmspc"] = "90c06f000001" },
			attestation.CodeCollateralMissing, "tdx-tcb-info",
		},
		{
			"TCB info of another PCE", func(d *tdxtest.Documents) { d.TCBInfo["pceId"] = "0001" },
			attestation.CodeCollateralInvalid, "tdx-tcb-info.pceId",
		},
		{
			"TCB info of SGX", func(d *tdxtest.Documents) { d.TCBInfo["id"] = "SGX" }, attestation.CodeCollateralInvalid,
			"tdx-tcb-info",
		},
		{
			"TCB info of another version", func(d *tdxtest.Documents) { d.TCBInfo["version"] = 4 },
			attestation.CodeCollateralInvalid, "tdx-tcb-info",
		},
		{
			"TCB info of another type", func(d *tdxtest.Documents) { d.TCBInfo["tcbType"] = 1 },
			attestation.CodeCollateralInvalid, "tdx-tcb-info",
		},
		{
			"TCB info expired", func(d *tdxtest.Documents) { d.TCBInfo["nextUpdate"] = day(-1) },
			attestation.CodeCollateralExpired, "tdx-tcb-info",
		},
		{
			"TCB info early", func(d *tdxtest.Documents) { d.TCBInfo["issueDate"] = day(1) }, attestation.CodeCollateralEarly,
			"tdx-tcb-info",
		},
		{"15 components of SGX", func(d *tdxtest.Documents) {
			tcb := levels(d.TCBInfo)[0].(map[string]any)["tcb"].(map[string]any)
			tcb["sgxtcbcomponents"] = tcb["sgxtcbcomponents"].([]any)[1:]
		}, attestation.CodeTCBStatus, "tcb_svn"},
		{"level beyond a byte", func(d *tdxtest.Documents) {
			tcb := levels(d.TCBInfo)[0].(map[string]any)["tcb"].(map[string]any)
			tcb["sgxtcbcomponents"].([]any)[0] = map[string]any{"svn": 256}
		}, attestation.CodeTCBStatus, "tcb_svn"},
		{"no components of TDX", func(d *tdxtest.Documents) {
			delete(levels(d.TCBInfo)[0].(map[string]any)["tcb"].(map[string]any), "tdxtcbcomponents")
		}, attestation.CodeTCBStatus, "tcb_svn"},
		{
			"PCE too old", func(d *tdxtest.Documents) { d.TCBInfo["tcbLevels"] = []any{tdxtest.Level(5, 14, "UpToDate")} },
			attestation.CodeTCBStatus, "tcb_svn",
		},
		{"SGX too old", func(d *tdxtest.Documents) {
			l := tdxtest.Level(5, 13, "UpToDate")
			l["tcb"].(map[string]any)["sgxtcbcomponents"].([]any)[15] = map[string]any{"svn": 6}
			d.TCBInfo["tcbLevels"] = []any{l}
		}, attestation.CodeTCBStatus, "tcb_svn"},
		{
			"unknown status", func(d *tdxtest.Documents) { d.TCBInfo["tcbLevels"] = []any{tdxtest.Level(5, 13, "Fine")} },
			attestation.CodeCollateralInvalid, "tcb_status",
		},
		{"configuration needed", func(d *tdxtest.Documents) {
			d.TCBInfo["tcbLevels"] = []any{tdxtest.Level(5, 13, "ConfigurationNeeded")}
		}, attestation.CodeTCBStatus, "tcb_status"},
		{"module revoked", func(d *tdxtest.Documents) {
			levels(d.TCBInfo["tdxModuleIdentities"].([]any)[1].(map[string]any))[0].(map[string]any)["tcbStatus"] = "Revoked"
		}, attestation.CodeRevoked, "tcb_status"},
		{"enclave revoked", func(d *tdxtest.Documents) {
			d.QEIdentity["tcbLevels"] = []any{tdxtest.ModuleLevel(8,
				"Revoked")}
		}, attestation.CodeRevoked, "tcb_status"},
		{
			"identity of another enclave", func(d *tdxtest.Documents) { d.QEIdentity["id"] = "QE" },
			attestation.CodeCollateralInvalid, "tdx-qe-identity",
		},
		{
			"identity of another version", func(d *tdxtest.Documents) { d.QEIdentity["version"] = 1 },
			attestation.CodeCollateralInvalid, "tdx-qe-identity",
		},
		{
			"identity expired", func(d *tdxtest.Documents) { d.QEIdentity["nextUpdate"] = day(-1) },
			attestation.CodeCollateralExpired, "tdx-qe-identity",
		},
		{
			"identity early", func(d *tdxtest.Documents) { d.QEIdentity["issueDate"] = day(1) },
			attestation.CodeCollateralEarly, "tdx-qe-identity",
		},
		{
			"identity without a signer of the enclave", func(d *tdxtest.Documents) { d.QEIdentity["mrsigner"] = "" },
			attestation.CodeQEIdentity, "qe_report.mrsigner",
		},
		{
			"identity with a short mask", func(d *tdxtest.Documents) { d.QEIdentity["attributesMask"] = "FB" },
			attestation.CodeQEIdentity, "qe_report.attributes",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newRound(t, p, 0, nil, tc.edit).verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

// Documents that were changed after they were signed, or that are missing.
func TestDocumentsAreRefused(t *testing.T) {
	p := tdxtest.New(t, nil)
	for i, kind := range []attestation.Kind{tdx.KindTCBInfo, tdx.KindQEIdentity, tdx.KindPCKCRL, tdx.KindRootCRL} {
		r := newRound(t, p, 0, nil, nil)
		data := r.collateral.Documents[i].Data
		r.collateral.Documents[i].Data = append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1)
		_, err := r.verify()
		refused(t, err, attestation.CodeCollateralInvalid, string(kind))

		r.collateral.Documents = slices.Delete(r.collateral.Documents, i, i+1)
		_, err = r.verify()
		refused(t, err, attestation.CodeCollateralMissing, string(kind))
	}
	for i, member := range []string{"tcbInfo", "enclaveIdentity"} {
		r := newRound(t, p, 0, nil, nil)
		data := r.collateral.Documents[i].Data
		r.collateral.Documents[i].Data = bytes.Replace(data, []byte(`"UpToDate"`), []byte(`"Uptodate"`), 1)
		_, err := r.verify()
		refused(t, err, attestation.CodeCollateralInvalid, string(r.collateral.Documents[i].Kind)+".signature")
		r.collateral.Documents[i].Data = bytes.Replace(data, []byte(`"signature":"`), []byte(`"signature":"00","old":"`), 1)
		_, err = r.verify()
		refused(t, err, attestation.CodeCollateralInvalid, string(r.collateral.Documents[i].Kind)+".signature")
		r.collateral.Documents[i].Data = bytes.Replace(data, []byte(member), []byte("content"), 1)
		_, err = r.verify()
		refused(t, err, attestation.CodeCollateralInvalid, string(r.collateral.Documents[i].Kind))
	}
}

// Certificates that are wrong in one point, at the top of all else.
func TestCertificatesAreRefused(t *testing.T) {
	unknown := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}
	for _, tc := range []struct {
		name, subject string
		edit          func(*x509.Certificate)
		code          attestation.Code
		field         string
	}{
		{
			"PCK expired", "Intel SGX PCK Certificate",
			func(c *x509.Certificate) { c.NotAfter = tdxtest.Now.Add(-time.Second) }, attestation.CodeCollateralExpired,
			"pck_certificate[0].validity",
		},
		{
			"PCK early", "Intel SGX PCK Certificate", func(c *x509.Certificate) { c.NotBefore = tdxtest.Now.Add(time.Second) },
			attestation.CodeCollateralEarly, "pck_certificate[0].validity",
		},
		{
			"CA expired", "Intel SGX PCK Platform CA", func(c *x509.Certificate) { c.NotAfter = tdxtest.Now.Add(-time.Second) },
			attestation.CodeCollateralExpired, "pck_certificate[1].validity",
		},
		{
			"root expired", "Intel SGX Root CA", func(c *x509.Certificate) { c.NotAfter = tdxtest.Now.Add(-time.Second) },
			attestation.CodeCollateralExpired, "pck_certificate[2].validity",
		},
		{
			"signer expired", "Intel SGX TCB Signing", func(c *x509.Certificate) { c.NotAfter = tdxtest.Now.Add(-time.Second) },
			attestation.CodeCollateralExpired, "tdx-tcb-info.signer[0].validity",
		},
		{
			"PCK is a CA", "Intel SGX PCK Certificate", func(c *x509.Certificate) { c.IsCA = true }, attestation.CodeChain,
			"pck_certificate",
		},
		{
			"signer is a CA", "Intel SGX TCB Signing", func(c *x509.Certificate) { c.IsCA = true }, attestation.CodeChain,
			"tdx-tcb-info.signer",
		},
		{"CA is none", "Intel SGX PCK Platform CA", func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = false,
				x509.KeyUsageDigitalSignature
		}, attestation.CodeChain, "pck_certificate"},
		{
			"critical extension", "Intel SGX PCK Certificate",
			func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, unknown) }, attestation.CodeChain,
			"pck_certificate",
		},
		{
			"other subject", "Intel SGX PCK Platform CA",
			func(c *x509.Certificate) { c.Subject.CommonName = "Intel SGX PCK Other CA" }, attestation.CodeChain,
			"pck_certificate.subject",
		},
		{
			"no SGX extension", "Intel SGX PCK Certificate", func(c *x509.Certificate) { c.ExtraExtensions = nil },
			attestation.CodeMalformed, "pck_certificate.sgx_extensions",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tdxtest.New(t, func(subject string, c *x509.Certificate) {
				if subject == tc.subject {
					tc.edit(c)
				}
			})
			collateral := tdxtest.New(t, nil) // a CA without the right to sign cannot make a list
			r := newRound(t, p, 0, nil, func(d *tdxtest.Documents) {
				if tc.name == "CA is none" {
					d.PCKCRLSigner = collateral.CA
				}
			})
			_, err := r.verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

// Each case breaks the SGX extension of the PCK certificate in one point.
func TestSGXExtensionsAreRefused(t *testing.T) {
	type edit func(members, tcb *[]tdxtest.Member)
	for name, change := range map[string]edit{
		"no FMSPC":             func(m, _ *[]tdxtest.Member) { *m = slices.Delete(*m, 2, 3) },
		"no PCE id":            func(m, _ *[]tdxtest.Member) { *m = slices.Delete(*m, 1, 2) },
		"FMSPC twice":          func(m, _ *[]tdxtest.Member) { *m = append(*m, (*m)[2]) },
		"short FMSPC":          func(m, _ *[]tdxtest.Member) { (*m)[2].Value = []byte{1} },
		"FMSPC is a number":    func(m, _ *[]tdxtest.Member) { (*m)[2].Value = 1 },
		"id of someone else":   func(m, _ *[]tdxtest.Member) { (*m)[0].ID = asn1.ObjectIdentifier{1, 2, 99} },
		"component missing":    func(_, c *[]tdxtest.Member) { *c = slices.Delete(*c, 3, 4) },
		"component too large":  func(_, c *[]tdxtest.Member) { (*c)[3].Value = 256 },
		"component negative":   func(_, c *[]tdxtest.Member) { (*c)[3].Value = -1 },
		"component twice":      func(_, c *[]tdxtest.Member) { (*c)[3].ID = (*c)[2].ID },
		"PCESVN too large":     func(_, c *[]tdxtest.Member) { (*c)[16].Value = 65536 },
		"short CPUSVN":         func(_, c *[]tdxtest.Member) { (*c)[17].Value = []byte{1} },
		"flags are no list":    func(m, _ *[]tdxtest.Member) { (*m)[5].Value = 1 },
		"short instance of it": func(m, _ *[]tdxtest.Member) { (*m)[4].Value = []byte{1} },
	} {
		t.Run(name, func(t *testing.T) {
			p := tdxtest.New(t, func(_ string, c *x509.Certificate) {
				if len(c.ExtraExtensions) > 0 {
					c.ExtraExtensions[0].Value = tdxtest.SGXExtension(t, change)
				}
			})
			_, err := newRound(t, p, 0, nil, nil).verify()
			refused(t, err, attestation.CodeMalformed, "pck_certificate.sgx_extensions")
		})
	}
}

func TestExpiredCollateralOnlyWhenSaid(t *testing.T) {
	p := tdxtest.New(t, nil)
	r := newRound(t, p, 0, nil, nil)
	r.collateral.Now = tdxtest.Now.AddDate(0, 6, 0)
	_, err := r.verify()
	refused(t, err, attestation.CodeCollateralExpired, "intel-root-crl")
	r.collateral.AllowExpired = true
	c, err := r.verify()
	if err != nil || c.Details["collateral_expiration_status"] != "1" {
		t.Errorf("%v, %v", c, err)
	}
	r.collateral.Now = tdxtest.Now.AddDate(0, 0, -2)
	_, err = r.verify()
	refused(t, err, attestation.CodeCollateralEarly, "intel-root-crl")
	r.collateral.Now = time.Time{}
	_, err = r.verify()
	refused(t, err, attestation.CodeExpectation, "time")
}

// The signer's certificates may come percent-encoded, as Intel's service sends them, or as a document of their own.
func TestSignersChainInOtherForms(t *testing.T) {
	p := tdxtest.New(t, nil)
	r := newRound(t, p, 0, nil, nil)
	plain := r.collateral.Documents[0].Chain
	for i := range 2 {
		r.collateral.Documents[i].Chain = []byte(url.PathEscape(string(plain)))
	}
	if _, err := r.verify(); err != nil {
		t.Errorf("percent-encoded: %v", err)
	}
	for i := range 2 {
		r.collateral.Documents[i].Chain = nil
	}
	r.collateral.Documents = append(r.collateral.Documents,
		attestation.Document{Kind: tdx.KindSigningChain, Name: "signer.pem", Data: plain})
	if _, err := r.verify(); err != nil {
		t.Errorf("as a document: %v", err)
	}
}

// A certificate that the right key has signed, in the name of another issuer.
func TestIssuersNameIsCompared(t *testing.T) {
	p := tdxtest.New(t, nil)
	other := *p.CA.Cert
	other.RawSubject, other.Subject.CommonName = nil, "Intel SGX PCK Other CA"
	p.PCK = tdxtest.Issue(t, &tdxtest.Issuer{Key: p.CA.Key, Cert: &other}, "Intel SGX PCK Certificate", nil)
	_, err := newRound(t, p, 0, nil, nil).verify()
	refused(t, err, attestation.CodeChain, "pck_certificate")
}

// Keys that are not of ECDSA, in certificates that are right.
func TestKeysOfOtherKindsAreRefused(t *testing.T) {
	p := tdxtest.New(t, nil)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certify := func(like *x509.Certificate, by tdxtest.Issuer) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, like, by.Cert, key.Public(), by.Key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	like := *p.PCK.Cert
	like.ExtraExtensions = []pkix.Extension{like.Extensions[len(like.Extensions)-1]}
	chain := tdxtest.PEM(certify(&like, p.CA), p.CA.Cert, p.Root.Cert)
	_, err = newRound(t, p, 0, func(q *tdxtest.Parts) { q.Chain = chain }, nil).verify()
	refused(t, err, attestation.CodeUnsupported, "pck_certificate[0].key")
	_, err = newRound(t, p, 0, nil, func(d *tdxtest.Documents) {
		d.SignerChain = tdxtest.PEM(certify(p.Signer.Cert, p.Root), p.Root.Cert)
	}).verify()
	refused(t, err, attestation.CodeUnsupported, "tdx-tcb-info.signer")
	root := *p.Root.Cert
	chain = tdxtest.PEM(p.PCK.Cert, p.CA.Cert, certify(&root, p.Root))
	_, err = newRound(t, p, 0, func(q *tdxtest.Parts) { q.Chain = chain }, nil).verify()
	refused(t, err, attestation.CodeChain, "pck_certificate")
}

// Documents are bounded, though they are right.
func TestLongDocumentsAreRefused(t *testing.T) {
	p := tdxtest.New(t, nil)
	for i, field := range []string{"tdx-tcb-info", "tdx-qe-identity", "intel-pck-crl"} {
		r := newRound(t, p, 0, nil, nil)
		d := &r.collateral.Documents[i]
		if i == 2 {
			d.Data = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: d.Data})
			if _, err := r.verify(); err != nil {
				t.Fatalf("a list in PEM: %v", err)
			}
		}
		d.Data = append(d.Data, bytes.Repeat([]byte("\n"), 4<<20)...)
		_, err := r.verify()
		refused(t, err, attestation.CodeCollateralInvalid, field)
	}
	r := newRound(t, p, 0, nil, nil)
	r.collateral.Documents[0].Chain = append(r.collateral.Documents[0].Chain, bytes.Repeat([]byte("\n"), 64<<10)...)
	_, err := r.verify()
	refused(t, err, attestation.CodeCollateralInvalid, "tdx-tcb-info.signer")
}
