// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation"
)

// Kinds of documents that a quote needs.
const (
	KindTCBInfo    attestation.Kind = "tdx-tcb-info"
	KindQEIdentity attestation.Kind = "tdx-qe-identity"
	KindPCKCRL     attestation.Kind = "intel-pck-crl"
	KindRootCRL    attestation.Kind = "intel-root-crl"
	// KindSigningChain are the certificates of the signer of TCB info and QE identity, for documents without a chain of
	// their own.
	KindSigningChain attestation.Kind = "intel-tcb-signing-chain"
)

// maxDocument bounds each document; those of today have up to 100 KiB.
const maxDocument = 4 << 20

const (
	pcs     = "https://api.trustedservices.intel.com"
	rootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
)

// Requests returns the documents that Verify needs for the evidence. The evidence is not verified yet: the names are
// made
// of digits that a certificate in the quote states.
func Requests(e attestation.Evidence) ([]attestation.Request, error) {
	q, err := Parse(e.Report)
	if err != nil {
		return nil, err
	}
	certs, err := readChain("pck_certificate", q.chain)
	if err != nil {
		return nil, err
	}
	p, err := readPlatform(certs[0])
	if err != nil {
		return nil, err
	}
	ca := "platform"
	if certs[0].Issuer.CommonName == cnProcessorCA {
		ca = "processor"
	}
	return []attestation.Request{
		{
			Kind: KindTCBInfo, Name: "tdx/tcb-info-" + p.fmspc.String() + ".json",
			URL: pcs + "/tdx/certification/v4/tcb?fmspc=" + p.fmspc.String(), ChainHeader: "TCB-Info-Issuer-Chain",
		},
		{
			Kind: KindQEIdentity, Name: "tdx/qe-identity.json",
			URL: pcs + "/tdx/certification/v4/qe/identity", ChainHeader: "SGX-Enclave-Identity-Issuer-Chain",
		},
		{
			Kind: KindPCKCRL, Name: "tdx/pck-" + ca + ".crl",
			URL: pcs + "/sgx/certification/v4/pckcrl?ca=" + ca + "&encoding=der", ChainHeader: "SGX-PCK-CRL-Issuer-Chain",
		},
		{Kind: KindRootCRL, Name: "tdx/root.crl", URL: rootCRL},
	}, nil
}

// tcbInfo is Intel's list of TCB levels for one kind of platform (version 3).
type tcbInfo struct {
	ID         string           `json:"id"`
	Version    int              `json:"version"`
	IssueDate  time.Time        `json:"issueDate"`
	NextUpdate time.Time        `json:"nextUpdate"`
	FMSPC      hexText          `json:"fmspc"`
	PCEID      hexText          `json:"pceId"`
	Type       int              `json:"tcbType"`
	Evaluation int              `json:"tcbEvaluationDataNumber"`
	Module     moduleIdentity   `json:"tdxModule"`
	Modules    []moduleIdentity `json:"tdxModuleIdentities"`
	Levels     []level          `json:"tcbLevels"`
}

// moduleIdentity is what the measurements of a TDX module must be.
type moduleIdentity struct {
	ID             string  `json:"id"`
	MRSigner       hexText `json:"mrsigner"`
	Attributes     hexText `json:"attributes"`
	AttributesMask hexText `json:"attributesMask"`
	Levels         []level `json:"tcbLevels"`
}

// level is one TCB level of a platform, a module or an enclave.
type level struct {
	TCB struct {
		SGX    []component `json:"sgxtcbcomponents"`
		PCESVN int         `json:"pcesvn"`
		TDX    []component `json:"tdxtcbcomponents"`
		SVN    int         `json:"isvsvn"`
	} `json:"tcb"`
	Date       time.Time `json:"tcbDate"`
	Status     Status    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

type component struct {
	SVN int `json:"svn"`
}

// enclaveIdentity is what the quoting enclave's report must be (version 2).
type enclaveIdentity struct {
	ID             string    `json:"id"`
	Version        int       `json:"version"`
	IssueDate      time.Time `json:"issueDate"`
	NextUpdate     time.Time `json:"nextUpdate"`
	Evaluation     int       `json:"tcbEvaluationDataNumber"`
	MiscSelect     hexText   `json:"miscselect"`
	MiscMask       hexText   `json:"miscselectMask"`
	Attributes     hexText   `json:"attributes"`
	AttributesMask hexText   `json:"attributesMask"`
	MRSigner       hexText   `json:"mrsigner"`
	ProdID         int       `json:"isvprodid"`
	Levels         []level   `json:"tcbLevels"`
}

// hexText is a value that JSON carries as hexadecimal digits of either case.
type hexText []byte

func (h *hexText) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = b
	return err
}

// signedDocument is a document as Intel's service sends it: a member with the content, and the signature over the
// bytes of
// that member.
type signedDocument struct {
	name      string
	signed    json.RawMessage
	signature []byte
	chain     []byte
}

// openDocument splits a document into content and signature, and decodes the content.
func openDocument(d attestation.Document, member string, to any) (*signedDocument, error) {
	bad := func(err error) error {
		return attestation.Fail(attestation.CodeCollateralInvalid, string(d.Kind), "a document that Intel's service sends",
			d.Name, err)
	}
	if len(d.Data) > maxDocument {
		return nil, bad(fmt.Errorf("it has %d bytes, more than %d", len(d.Data), maxDocument))
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(d.Data, &members); err != nil {
		return nil, bad(err)
	}
	var text hexText
	if err := json.Unmarshal(members["signature"], &text); err != nil {
		return nil, bad(fmt.Errorf("signature: %w", err))
	}
	if err := json.Unmarshal(members[member], to); err != nil {
		return nil, bad(fmt.Errorf("%s: %w", member, err))
	}
	return &signedDocument{name: d.Name, signed: members[member], signature: text, chain: d.Chain}, nil
}

// readChain reads certificates in PEM, the leaf first. Intel's service sends them percent-encoded in a header.
func readChain(field string, text []byte) ([]*x509.Certificate, error) {
	if s := string(text); strings.Contains(s, "BEGIN%20") {
		if plain, err := url.PathUnescape(s); err == nil {
			text = []byte(plain)
		}
	}
	certs, err := parsePEM(text)
	if err != nil {
		return nil, attestation.Fail(attestation.CodeMalformed, field, "certificates in PEM",
			fmt.Sprintf("%d bytes", len(text)), err)
	}
	return certs, nil
}

// maxChain bounds the certificates of one chain. Intel's have three.
const maxChain = 8

func parsePEM(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxQuote {
		return nil, fmt.Errorf("more than %d bytes", maxQuote)
	}
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > maxChain {
			return nil, fmt.Errorf("more than %d certificates", maxChain)
		}
		text = rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}
