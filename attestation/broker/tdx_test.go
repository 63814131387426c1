// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/collateral"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
)

// tdGuest is a TD.
type tdGuest struct {
	w        *world
	platform *tdxtest.Platform
	edit     func(body []byte)
}

func (g tdGuest) TEE() string { return "tdx" }

func (g tdGuest) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	quote := g.platform.Quote(g.w.t, tdx.TD15, func(p *tdxtest.Parts) {
		clear(p.Body[tdxtest.ReportData:][:64])
		copy(p.Body[tdxtest.ReportData:], digest)
		clear(p.Body[tdxtest.MRConfigID:][:48])
		copy(p.Body[tdxtest.MRConfigID:], g.w.doc.Digest())
		if g.edit != nil {
			g.edit(p.Body)
		}
	})
	return json.Marshal(map[string]any{"quote": quote, "cc_eventlog": nil})
}

// intel serves the documents on a platform.
type intel map[string]*http.Response

func (i intel) Do(r *http.Request) (*http.Response, error) {
	resp, ok := i[r.URL.String()]
	if !ok {
		return nil, fmt.Errorf("no answer to %s", r.URL)
	}
	return resp, nil
}

func serviceFor(t *testing.T, p *tdxtest.Platform) intel {
	t.Helper()
	requests, err := tdx.Requests(attestation.Evidence{Type: attestation.TDX, Report: p.Quote(t, tdx.TD15, nil)})
	if err != nil {
		t.Fatal(err)
	}
	col := p.Collateral(t, nil)
	out := intel{}
	for _, r := range requests {
		d := col.All(r.Kind)
		if len(d) == 0 {
			continue
		}
		header := http.Header{}
		if r.ChainHeader != "" && d[0].Chain != nil {
			header.Set(r.ChainHeader, url.PathEscape(string(d[0].Chain)))
		}
		out[r.URL] = &http.Response{StatusCode: 200, Header: header, Body: io.NopCloser(bytes.NewReader(d[0].Data))}
	}
	return out
}

func TestGuestsWithTDX(t *testing.T) {
	p := tdxtest.New(t, nil)
	w := begin(t, true, func(c *Config) {
		c.Evidence.TDXRoot = p.Expectations().Root
		c.Evidence.Collateral = &collateral.Store{Now: c.Now, Service: serviceFor(t, p)}
	})
	w.clock.move(tdxtest.Now.Sub(snptest.Now))
	w.must("POST", "/kbs/v0/reference-value", w.references(nil)) // with another end than before
	var body []byte
	p.Quote(t, tdx.TD15, func(p *tdxtest.Parts) { body = bytes.Clone(p.Body) })
	value := func(at int) []string { return []string{hex.EncodeToString(body[at : at+48])} }
	values, err := json.Marshal(map[string]any{
		"mr_td": value(tdxtest.MRTD), "rtmr_1": value(tdxtest.RTMR0 + 48), "rtmr_2": value(tdxtest.RTMR0 + 96),
	})
	if err != nil {
		t.Fatal(err)
	}
	message := fmt.Appendf(nil, `{"type":"sample","payload":%q}`, base64.StdEncoding.EncodeToString(values))
	w.must("POST", "/kbs/v0/reference-value", message)
	for name, tc := range map[string]struct {
		edit func([]byte)
		want client.Reason // empty: the secret
		code attestation.Code
	}{
		"good":           {nil, "", ""},
		"another kernel": {func(b []byte) { b[tdxtest.RTMR0+96] ^= 1 }, client.Denied, ""},
		"another TD":     {func(b []byte) { b[tdxtest.MRTD] ^= 1 }, client.Denied, ""},
		"debugging":      {func(b []byte) { b[tdxtest.Attributes] |= 1 }, client.Refused, attestation.CodeDebug},
		"other initdata": {func(b []byte) { b[tdxtest.MRConfigID] ^= 1 }, client.Refused, attestation.CodeInitData},
		"other nonce":    {func(b []byte) { b[tdxtest.ReportData] ^= 1 }, client.Refused, attestation.CodeReportData},
	} {
		got, err := w.client(func(c *client.Config) { c.Attester = tdGuest{w, p, tc.edit} }).Resource(t.Context(), password)
		r, text := reason(err)
		if r != tc.want || (err == nil) != (string(got) == "a secret") || !strings.Contains(text, string(tc.code)) {
			t.Errorf("%s: %q, %s, want %s", name, got, text, tc.want)
		}
	}
}
