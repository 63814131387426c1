// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	tdxguest "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"
	"github.com/google/go-tdx-guest/verify"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/tests/vectors"
)

// february is a time at which google/go-tdx-guest's TCB info for its quote of version 5 is valid; its other documents
// are of 2023.
var february = time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC)

// googleCollateral are the documents that google/go-tdx-guest carries, answered to the requests for a quote.
func googleCollateral(t *testing.T, quote []byte, now time.Time) attestation.Collateral {
	t.Helper()
	requests, err := tdx.Requests(attestation.Evidence{Type: attestation.TDX, Report: quote})
	if err != nil {
		t.Fatal(err)
	}
	c := attestation.Collateral{Now: now}
	for _, r := range requests {
		answer, ok := tdxguest.TestGetter.Responses[r.URL]
		if !ok {
			continue
		}
		d := attestation.Document{Kind: r.Kind, Name: r.URL, Data: answer.Body}
		for name, value := range answer.Header {
			if strings.EqualFold(name, r.ChainHeader) {
				d.Chain = []byte(value[0])
			}
		}
		c.Documents = append(c.Documents, d)
	}
	return c
}

func undecided() tdx.Expectations {
	var e tdx.Expectations
	e.Undecided = []attestation.Item{attestation.ItemReportData, attestation.ItemInitData, attestation.ItemMeasurement}
	return e
}

// Quotes of real hardware with real documents of Intel.
func TestGooglesSamples(t *testing.T) {
	july := time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC)
	v := func(quote []byte, now time.Time, expired bool) (*attestation.Claims, error) {
		c := googleCollateral(t, quote, now)
		c.AllowExpired = expired
		return tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: quote}, c, undecided())
	}
	_, err := v(testdata.RawQuote, july, false)
	refused(t, err, attestation.CodeTCBStatus, "tcb_svn") // go-tdx-guest: "no matching TCB level found"
	_, err = v(testdata.RawQuote, july.AddDate(0, -2, 0), false)
	refused(t, err, attestation.CodeCollateralEarly, "intel-pck-crl")
	_, err = v(testdata.RawQuoteV5, february, false)
	refused(t, err, attestation.CodeCollateralExpired, "intel-root-crl")
	c, err := v(testdata.RawQuoteV5, february, true)
	if err != nil {
		t.Fatal(err)
	}
	if c.Details["tcb_status"] != "UpToDate" || c.Measurement.String()[:8] != "7348651a" || c.Details["quote_type"] != 3. {
		t.Errorf("claims %v", c)
	}
	quote := bytes.Clone(testdata.RawQuoteV5)
	quote[len(quote)-4000] ^= 1
	_, err = v(quote, february, true)
	refused(t, err, attestation.CodeSignature, "qe_report.signature")
}

// The quotes of others verify up to the point where their vectors lack a document of Intel or state a flaw.
func TestPublishedQuotes(t *testing.T) {
	dir := vectors.Dir(t)
	chain := googleCollateral(t, testdata.RawQuoteV5, february).All(tdx.KindQEIdentity)[0].Chain
	c := attestation.Collateral{
		Now: february, AllowExpired: true,
		Documents: []attestation.Document{{Kind: tdx.KindSigningChain, Data: chain}},
	}
	for _, f := range []struct {
		kind attestation.Kind
		path string
	}{
		{tdx.KindTCBInfo, "trustee/tcbInfo.json"},
		{tdx.KindTCBInfo, "go-tdx-guest/sample_tcbInfo_response"},
		{tdx.KindTCBInfo, "go-tdx-guest/sample_tcbinfo_response_v5"},
		{tdx.KindQEIdentity, "trustee/enclaveIdentity.json"},
		{tdx.KindPCKCRL, "go-tdx-guest/pckcrl"},
		{tdx.KindRootCRL, "go-tdx-guest/rootcrl.der"},
	} {
		c.Documents = append(c.Documents, attestation.Document{
			Kind: f.kind, Name: f.path,
			Data: vectors.Read(t, dir, "tdx/"+f.path),
		})
	}
	for _, tc := range []struct {
		path, log string
		code      attestation.Code
		field     string
	}{
		{"go-tdx-guest/quote_v5_sample.dat", "", "", ""},
		{"trustee/tdx_quote_4.dat", "", attestation.CodeDebug, "td_attributes"},
		{"trustee/tdx_quote_5.dat", "", attestation.CodeTCBStatus, "tcb_svn"},
		{"dstack/tdx_quote", "", attestation.CodeCollateralMissing, "tdx-tcb-info"},
		{"go-tdx-guest/cos-113-tdx-quote.dat", "", attestation.CodeCollateralMissing, "tdx-tcb-info"},
		{"go-tdx-guest/tdx_prod_quote_SPR_E4.dat", "", attestation.CodeTCBStatus, "tcb_svn"},
	} {
		e := attestation.Evidence{Type: attestation.TDX, Report: vectors.Read(t, dir, "tdx/"+tc.path)}
		_, err := tdx.Verify(e, c, undecided())
		if tc.code == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.path, err)
			}
			continue
		}
		refused(t, err, tc.code, tc.field)
	}
}

// Trustee states the claims of its debug quote.
func TestClaimsAreTrustees(t *testing.T) {
	dir := vectors.Dir(t)
	var want map[string]any
	if err := json.Unmarshal(vectors.Read(t, dir, "tdx/trustee/parse_tdx_claims_expected.json"), &want); err != nil {
		t.Fatal(err)
	}
	quote := vectors.Read(t, dir, "tdx/trustee/tdx_quote_4.dat")
	e := undecided()
	e.AllowDebug = true
	c := googleCollateral(t, quote, february)
	c.AllowExpired = true
	got, err := tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: quote}, c, e)
	if err != nil {
		t.Fatal(err)
	}
	delete(want, "uefi_event_logs") // that log is not the quote's
	delete(got.Details["td_attributes"].(map[string]any), "migratable")
	for name, value := range want {
		if diff := cmp.Diff(value, got.Details[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// The event log of a real TD leads to the registers of its quote. Intel's documents for that platform are not published
// with it, so the registers are put into a quote of our own.
func TestPublishedEventLogs(t *testing.T) {
	dir := vectors.Dir(t)
	p := tdxtest.New(t, nil)
	for path, events := range map[string]int{
		"go-tdx-guest/ccel_data.dat": 0, "dstack/ccel.bin": 0,
		"trustee/CCEL_data_ovmf": 0,
	} {
		area := vectors.Read(t, dir, "tdx/"+path)
		registers := replay(t, area)
		if path == "go-tdx-guest/ccel_data.dat" {
			q, err := tdx.Parse(vectors.Read(t, dir, "tdx/go-tdx-guest/cos-113-tdx-quote.dat"))
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range q.Body.RTMR {
				registers[i] = measurement.Digest(r)
			}
		}
		r := newRound(t, p, tdx.TD15, func(q *tdxtest.Parts) {
			for i, d := range registers {
				copy(q.Body[tdxtest.RTMR0+48*i:], d)
			}
		}, nil)
		r.evidence.EventLog = area
		c, err := r.verify()
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for _, e := range c.Details["uefi_event_logs"].([]any) {
			if e.(map[string]any)["covers"] == "event" {
				events++
			}
		}
		if events == 0 {
			t.Errorf("%s: no digest is computed again", path)
		}
	}
}

// go-tdx-guest judges the same quotes under our test root: what it accepts we accept, and what it refuses we refuse. It
// does not read bodies of type 4, and for a module with levels of its own it ignores the level of the platform; those
// have tests above.
func TestGoTDXGuestAgrees(t *testing.T) {
	p := tdxtest.New(t, nil)
	c := p.Collateral(t, nil)
	roots := x509.NewCertPool()
	roots.AddCert(p.Root.Cert)
	requests, err := tdx.Requests(attestation.Evidence{Report: p.Quote(t, 0, nil)})
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]tdxguest.HTTPResponse{}
	for _, r := range requests {
		d := c.All(r.Kind)[0]
		header := map[string][]string{}
		if d.Chain == nil {
			d.Chain = tdxtest.PEM(p.CA.Cert, p.Root.Cert)
		}
		for _, n := range []string{"Tcb-Info-Issuer-Chain", "Sgx-Enclave-Identity-Issuer-Chain", "Sgx-Pck-Crl-Issuer-Chain"} {
			header[n] = []string{url.QueryEscape(string(d.Chain))}
		}
		answers[r.URL] = tdxguest.HTTPResponse{Header: header, Body: d.Data}
	}
	theirs := func(quote []byte) (err error) {
		defer func() { // it trusts the length of the authentication data
			if p := recover(); p != nil {
				err = fmt.Errorf("it panics: %v", p)
			}
		}()
		return verify.RawTdxQuote(quote, &verify.Options{
			CheckRevocations: true, GetCollateral: true, Getter: &tdxguest.Getter{Responses: answers}, TrustedRoots: roots,
			Now: &verify.TimeSet{PckCertChain: c.Now, TcbInfo: c.Now, QeIdentity: c.Now, PckCrl: c.Now, RootCaCrl: c.Now},
		})
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, body := range []tdx.BodyType{0, tdx.TD10, tdx.TD15} {
		quote := p.Quote(t, body, nil)
		if err := theirs(quote); err != nil {
			t.Fatalf("go-tdx-guest refuses our body %d: %v", body, err)
		}
		for range 40 {
			changed := bytes.Clone(quote)
			changed[random.IntN(1300)] ^= 1 << random.IntN(8)
			_, ours := tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: changed}, c, p.Expectations())
			if err := theirs(changed); (err == nil) != (ours == nil) {
				t.Errorf("body %d: we say %v, go-tdx-guest says %v", body, ours, err)
			}
		}
	}
	for name, edit := range map[string]func(*tdxtest.Parts){
		"old enclave": func(q *tdxtest.Parts) { q.QEReport[tdxtest.QESVN] = 3 },
		"old module":  func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN] = 5 },
		"signer":      func(q *tdxtest.Parts) { q.Body[tdxtest.MRSignerSeam] = 4 },
		"unbound key": func(q *tdxtest.Parts) { q.Bind = false },
	} {
		quote := p.Quote(t, 0, edit)
		_, ours := tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: quote}, c, p.Expectations())
		if err := theirs(quote); err == nil || ours == nil {
			t.Errorf("%s: we say %v, go-tdx-guest says %v", name, ours, err)
		}
	}
}
