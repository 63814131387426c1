// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guesttls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate that is valid for a year; ca nil makes a CA.
func issue(t *testing.T, ca *pair, name string, year int) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		BasicConstraintsValid: true, IsCA: ca == nil,
	}
	if ca == nil {
		ca, c.KeyUsage = &pair{c, key}, x509.KeyUsageCertSign
	} else {
		c.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &pair{c, key}
}

// Whether a chain is trusted depends on the roots and on the name, not on the clock of the guest.
func TestCertificates(t *testing.T) {
	list := func(p *pair) []*x509.Certificate { return []*x509.Certificate{p.cert} }
	ca, foreign, future := issue(t, nil, "ca", 2016), issue(t, nil, "ca", 2016), issue(t, nil, "ca", 2046)
	leaf, self := issue(t, ca, "kbs.example", 2016), issue(t, nil, "x", 2016)
	for name, tc := range map[string]struct {
		chain, roots []*x509.Certificate
		host         string
		ok           bool
	}{
		"by the CA, ten years ago": {list(leaf), list(ca), "kbs.example", true},
		"the certificate itself":   {list(leaf), list(leaf), "kbs.example", true},
		"in ten years":             {list(issue(t, future, "kbs.example", 2046)), list(future), "kbs.example", true},
		"another name":             {list(leaf), list(ca), "evil.example", false},
		"another CA of that name":  {list(leaf), list(foreign), "kbs.example", false},
		"no CA of the system's":    {list(leaf), nil, "kbs.example", false},
		"an empty list of roots":   {list(leaf), []*x509.Certificate{}, "kbs.example", false},
		"never valid together":     {list(issue(t, ca, "kbs.example", 2026)), list(ca), "kbs.example", false},
		"no name in it":            {list(self), list(self), "kbs.example", false},
		"no name asked for":        {list(leaf), list(ca), "", false},
		"no chain":                 {nil, list(ca), "kbs.example", false},
		"a long chain":             {make([]*x509.Certificate, maxChain+1), list(ca), "kbs.example", false},
	} {
		if err := Verify(tc.chain, tc.roots, tc.host); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The function alone decides about a server, and a refused one gets no request.
func TestTransportAsksVerify(t *testing.T) {
	requests := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests++ }))
	defer srv.Close()
	refusal := errors.New("refused by the test")
	for _, want := range []error{refusal, nil} {
		tr := Transport(tls.VersionTLS13, func(chain []*x509.Certificate, _ string) error {
			if len(chain) == 0 || !chain[0].Equal(srv.Certificate()) {
				t.Errorf("verify got a chain of %d", len(chain))
			}
			return want
		})
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err == nil {
			err = resp.Body.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("verify returned %v, the request %v", want, err)
		}
	}
	if requests != 1 {
		t.Errorf("the server got %d requests, not 1", requests)
	}
}
