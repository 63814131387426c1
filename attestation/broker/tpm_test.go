// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
)

// tpmGuest is a guest with a TPM of a node. Length is how much of the digest its TPM signs.
type tpmGuest struct {
	t      *testing.T
	tpm    *tpmtest.TPM
	cert   []byte
	length int
	pcrs   []byte // the selection
}

func (g tpmGuest) TEE() string { return "tpm" }

func (g tpmGuest) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	e := g.tpm.Quote(g.t, digest[:g.length], func(a *tpmtest.Attest) {
		a.Selections = []tpmtest.Select{{Hash: tpmtest.SHA256, Bits: g.pcrs}}
	})
	var pcrs []string
	for n := range 24 {
		pcrs = append(pcrs, hex.EncodeToString(e.PCRs[n]))
	}
	return json.Marshal(map[string]any{
		"ak_public": e.Key, "ak_certificates": g.cert,
		"tpm_quote": map[string]any{"signature": e.Signature, "message": e.Report, "pcrs": pcrs},
	})
}

// tpmWorld is a broker that trusts the CA of a node's TPMs, and a guest of that node.
func tpmWorld(t *testing.T) (*world, tpmGuest) {
	t.Helper()
	g := tpmGuest{t: t, tpm: tpmtest.NewECC(t), length: 32, pcrs: []byte{0xFF, 0xFF, 0xFF}}
	for n := range 24 {
		g.tpm.PCRs[n] = bytes.Repeat([]byte{byte(n)}, 32)
	}
	cert, ca := g.tpm.Certificate(t, nil)
	g.cert = cert
	root, err := x509.ParseCertificate(ca)
	if err != nil {
		t.Fatal(err)
	}
	w := begin(t, true, func(c *Config) {
		c.Evidence.TPMRoots = x509.NewCertPool()
		c.Evidence.TPMRoots.AddCert(root)
		c.Evidence.TPMSelection = tpm.Selection{Bank: crypto.SHA256}
		for n := range 24 {
			c.Evidence.TPMSelection.PCRs = append(c.Evidence.TPMSelection.PCRs, n)
		}
	})
	w.clock.move(tpmtest.Now.Sub(snptest.Now))
	g.tpm.PCRs[8] = make([]byte, 32)
	g.tpm.Extend(8, w.doc.Digest())
	registers := map[string]string{}
	for _, n := range []int{1, 2, 3, 4, 5, 6, 7, 9} {
		registers[fmt.Sprintf("pcr%02d", n)] = hex.EncodeToString(g.tpm.PCRs[n])
	}
	text, err := json.Marshal(map[string]any{
		"type": "coco-reference-values", "version": 1, "set": "boot",
		"values": []any{map[string]any{"platform": "vtpm", "registers": registers}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.must("POST", "/kbs/v0/reference-value", text)
	return w, g
}

func TestGuestsWithTPM(t *testing.T) {
	w, g := tpmWorld(t)
	other, _ := tpmtest.NewECC(t).Certificate(t, nil)
	get := func(g tpmGuest) (string, error) {
		got, err := w.client(func(c *client.Config) { c.Attester = g }).Resource(t.Context(), password)
		return string(got), err
	}
	// PCR 0 has no value yet, so that nothing is released.
	if got, err := get(g); err == nil {
		t.Errorf("without PCR 0: %q", got)
	}
	payload := base64.StdEncoding.EncodeToString([]byte(`{"tpm_pcr00_by_node":true}`))
	w.must("POST", "/kbs/v0/reference-value", fmt.Appendf(nil, `{"type":"sample","payload":%q}`, payload))
	for _, length := range []int{32, 48} { // CoCo's attester cuts the digest, ours does not
		g.length = length
		if got, err := get(g); err != nil || got != "a secret" {
			t.Errorf("%d bytes: %q, %v", length, got, err)
		}
	}
	if !strings.Contains(w.log.String(), "integrity only") {
		t.Errorf("log: %s", w.log)
	}
	for name, tc := range map[string]struct {
		edit func(*tpmGuest)
		want client.Reason
		code attestation.Code
	}{
		"half a digest":        {func(g *tpmGuest) { g.length = 16 }, client.Refused, attestation.CodeReportData},
		"another kernel":       {func(g *tpmGuest) { g.tpm.PCRs[4] = make([]byte, 32) }, client.Denied, ""},
		"another command line": {func(g *tpmGuest) { g.tpm.PCRs[9] = make([]byte, 32) }, client.Denied, ""},
		"another initdata": {
			func(g *tpmGuest) { g.tpm.PCRs[8] = make([]byte, 32) }, client.Refused, attestation.CodeInitData,
		},
		"fewer PCRs": {
			func(g *tpmGuest) { g.pcrs = []byte{0xFF, 3, 0} }, client.Refused, attestation.CodePCRSelection,
		},
		"certificate of another key": {
			func(g *tpmGuest) { g.cert = other }, client.Refused, attestation.CodeKeyOrigin,
		},
		"no certificate": {func(g *tpmGuest) { g.cert = nil }, client.Refused, attestation.CodeKeyOrigin},
	} {
		bad := g
		tw := *g.tpm
		bad.tpm = &tw
		bad.tpm.PCRs = map[int][]byte{}
		for n, v := range g.tpm.PCRs {
			bad.tpm.PCRs[n] = v
		}
		tc.edit(&bad)
		got, err := get(bad)
		if r, text := reason(err); r != tc.want || !strings.Contains(text, string(tc.code)) {
			t.Errorf("%s: %q, %s", name, got, text)
		}
	}
}
