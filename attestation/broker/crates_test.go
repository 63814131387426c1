// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/attestation/snp/snptest"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
)

// Environment of TestCratesAgree: the program of tests/interop, and the page that is written.
const (
	cratesProgram = "COCO_CRATES"
	cratesPage    = "COCO_CRATES_REPORT"
)

// crateCase is a question to a crate, and what coco says itself.
type crateCase struct {
	Crate string         // with its version
	What  string         // in words
	Ask   map[string]any // what tests/interop reads
	// Refuse: coco refuses it. Text, if not "": the crate must read all of this JSON. Value: the crate must say this.
	Refuse bool
	Text   string
	Value  map[string]any
	// Differs is why another answer than coco's is known and right; "": there is no reason.
	Differs string
}

// TestCratesAgree asks crates of others what they read in our messages, tokens and evidence.
func TestCratesAgree(t *testing.T) {
	program := os.Getenv(cratesProgram)
	if program == "" {
		t.Skip("make interop runs it")
	}
	cases := slices.Concat(messageCases(t), tokenCases(t), tdxCases(t), snpCases(t))
	slices.SortStableFunc(cases, func(a, b crateCase) int {
		return cmp.Or(strings.Compare(a.Crate, b.Crate), strings.Compare(a.What, b.What))
	})
	var questions []any
	for _, c := range cases {
		questions = append(questions, c.Ask)
	}
	text, err := json.Marshal(questions)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Stdin = bytes.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	var answers []struct {
		Value   any    `json:"value"`
		Refused string `json:"refused"`
	}
	if err := json.Unmarshal(out, &answers); err != nil || len(answers) != len(cases) {
		t.Fatalf("%d answers to %d cases: %v", len(answers), len(cases), err)
	}
	page := &strings.Builder{}
	page.WriteString(cratesHead)
	for i, c := range cases {
		a := answers[i]
		wrong := c.compare(a.Value, a.Refused)
		result := "the same"
		switch {
		case wrong != "" && c.Differs == "":
			t.Errorf("%s, %s: %s", c.Crate, c.What, wrong)
			result = "**differs**"
		case wrong != "":
			result = "differs: " + c.Differs
		case c.Differs != "":
			t.Errorf("%s, %s: the same answer, and a difference was expected: %s", c.Crate, c.What, c.Differs)
		}
		says := map[bool]string{true: "refused", false: "accepted"}
		fmt.Fprintf(page, "| %s | %s | %s | %s | %s |\n", c.Crate, c.What, says[c.Refuse], says[a.Refused != ""], result)
		t.Logf("%s, %s: %s %.120s", c.Crate, c.What, result, a.Refused)
	}
	if path := os.Getenv(cratesPage); path != "" && !t.Failed() {
		if err := os.WriteFile(path, []byte(page.String()), 0o600); err != nil {
			t.Error(err)
		}
	}
}

const cratesHead = `# Crates of others

` + "`make interop`" + ` wrote this page. It asks crates that are not ours what they read in coco's messages, tokens and evidence. "coco" and
"crate" say whether each accepts; "the same" also means: the crate reads every member of a message, the status of a token,
the status of a quote, the measurement of a report. Evidence is made by the tests, under roots of their own.

| crate | what | coco | crate | result |
|---|---|---|---|---|
`

// compare says what is wrong with an answer; "": nothing.
func (c crateCase) compare(value any, refused string) string {
	if (refused != "") != c.Refuse {
		return fmt.Sprintf("refused %q, coco refuses: %v", refused, c.Refuse)
	}
	if c.Text != "" {
		var want any
		if err := json.Unmarshal([]byte(c.Text), &want); err != nil || !reflect.DeepEqual(value, want) {
			return fmt.Sprintf("read %v of %s (%v)", value, c.Text, err)
		}
	}
	read, _ := value.(map[string]any)
	for name, want := range c.Value {
		if fmt.Sprint(read[name]) != fmt.Sprint(want) {
			return fmt.Sprintf("%s is %v, want %v", name, read[name], want)
		}
	}
	return ""
}

// messageCases are all messages of our client and our broker, with each kind of key, and of refusals.
func messageCases(t *testing.T) (cases []crateCase) {
	t.Helper()
	for _, key := range []kbs.Kind{kbs.P256, kbs.P521, kbs.RSA} {
		w := begin(t, true, nil)
		inner := w.srv.Config.Handler
		w.srv.Config.Handler = http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, r)
			kinds := map[string][2]string{
				"/kbs/v0/auth": {"request", "challenge"}, "/kbs/v0/attest": {"attestation", ""},
			}[r.URL.Path]
			if strings.Contains(r.URL.Path, "/resource/") {
				kinds[1] = "response"
			}
			if rec.Code != http.StatusOK {
				kinds[1] = "error"
			}
			for i, text := range []string{string(body), rec.Body.String()} {
				if kinds[i] != "" {
					cases = append(cases, crateCase{
						Crate: "kbs-types 0.18.0", What: fmt.Sprintf("%s (%s, status %d)", kinds[i], key, rec.Code),
						Ask: map[string]any{"kind": kinds[i], "text": text}, Text: text,
					})
				}
			}
			for name, values := range rec.Header() {
				out.Header()[name] = values
			}
			out.WriteHeader(rec.Code)
			_, _ = out.Write(rec.Body.Bytes())
		})
		c := w.client(func(cfg *client.Config) { cfg.Key = key })
		if _, err := c.Resource(t.Context(), password); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Resource(t.Context(), "default/db/absent") // an error of the broker's
	}
	return cases
}

// tokenCases are tokens of guests that are affirming and that are not, and one with a changed signature.
func tokenCases(t *testing.T) (cases []crateCase) {
	t.Helper()
	for status, known := range map[string]bool{"affirming": true, "warning": false} {
		w := begin(t, known, func(c *Config) { c.Now = time.Now }) // the crate's clock is this machine's
		if !known {                                                // the reference values are those of another initdata
			w.must("POST", "/kbs/v0/reference-value", w.references(nil))
			w.doc.Text = append(w.doc.Text, '\n')
		}
		tok, err := w.client(nil).Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var set struct {
			Keys []any `json:"keys"`
		}
		if err := json.Unmarshal(w.must("GET", "/.well-known/jwks.json", nil), &set); err != nil || len(set.Keys) != 1 {
			t.Fatal(err, len(set.Keys))
		}
		changed := []byte(tok.JWT)
		changed[strings.LastIndexByte(tok.JWT, '.')+5] ^= 1
		cases = append(cases, crateCase{
			Crate: "ear 0.5.0", What: "token of a guest that is " + status,
			Ask: map[string]any{"kind": "ear", "text": tok.JWT, "jwk": set.Keys[0]}, Value: map[string]any{"status": status},
		}, crateCase{
			Crate: "ear 0.6.0", What: "token of a guest that is " + status, Ask: map[string]any{
				"kind": "ear6", "text": tok.JWT, "jwk": set.Keys[0],
			},
			Differs: "it reads the members' names of draft-ietf-rats-ear-04 (ear_verifier_id), which Trustee does not write",
		}, crateCase{
			Crate: "ear 0.5.0", What: "the same token with another signature", Refuse: true,
			Ask: map[string]any{"kind": "ear", "text": string(changed), "jwk": set.Keys[0]},
		})
	}
	return cases
}

// tdxCases are quotes of each body, good ones and such with a changed part, and TCB levels of each status.
func tdxCases(t *testing.T) (cases []crateCase) {
	t.Helper()
	p := tdxtest.New(t, nil)
	add := func(what string, quote []byte, c attestation.Collateral) {
		e := p.Expectations()
		e.TCB.Statuses = []tdx.Status{
			tdx.SWHardeningNeeded, tdx.ConfigurationNeeded, tdx.ConfigurationAndSW, tdx.OutOfDate, tdx.OutOfDateConfiguration,
		}
		claims, err := tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: quote}, c, e)
		one := crateCase{Crate: "dcap-qvl 0.7.1", What: what, Refuse: err != nil, Ask: map[string]any{
			"kind": "tdx", "quote": quote, "root": p.Root.Cert.Raw, "now": c.Now.Unix(), "collateral": pccs(t, p, c),
		}}
		if err == nil {
			one.Value = map[string]any{"status": claims.Details["tcb_status"]}
		}
		cases = append(cases, one)
	}
	for name, body := range map[string]tdx.BodyType{"version 4": 0, "TDX 1.0": 2, "TDX 1.5": 3, "TDX 1.5 extended": 4} {
		quote := p.Quote(t, body, nil)
		add("quote, "+name, quote, p.Collateral(t, nil))
		add("quote, "+name+", a changed byte of the body", changedAt(quote, 48+200), p.Collateral(t, nil))
		add("quote, "+name+", an unknown platform", quote,
			p.Collateral(t, func(d *tdxtest.Documents) { d.TCBInfo["fmspc"] = "00906ED50000" }))
	}
	for _, status := range []string{
		"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
		"OutOfDateConfigurationNeeded", "Revoked",
	} {
		add("platform that is "+status, p.Quote(t, 3, nil), p.Collateral(t, func(d *tdxtest.Documents) {
			d.TCBInfo["tcbLevels"] = []any{tdxtest.Level(5, 13, status, "INTEL-SA-00001")}
		}))
	}
	late := p.Collateral(t, nil)
	late.Now = late.Now.AddDate(0, 2, 0)
	add("expired documents", p.Quote(t, 3, nil), late)
	return cases
}

func changedAt(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// pccs is collateral as dcap-qvl reads it.
func pccs(t *testing.T, p *tdxtest.Platform, c attestation.Collateral) map[string]any {
	t.Helper()
	out := map[string]any{"pck_crl_issuer_chain": string(tdxtest.PEM(p.CA.Cert, p.Root.Cert))}
	signed := func(name, member string, d attestation.Document) {
		var parts map[string]json.RawMessage
		var signature string
		if err := json.Unmarshal(d.Data, &parts); err != nil || json.Unmarshal(parts["signature"], &signature) != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(signature)
		if err != nil {
			t.Fatal(err)
		}
		out[name], out[name+"_signature"] = string(parts[member]), hex.EncodeToString(raw)
		out[name+"_issuer_chain"] = string(d.Chain)
	}
	for _, d := range c.Documents {
		switch d.Kind {
		case tdx.KindTCBInfo:
			signed("tcb_info", "tcbInfo", d)
		case tdx.KindQEIdentity:
			signed("qe_identity", "enclaveIdentity", d)
		case tdx.KindPCKCRL:
			out["pck_crl"] = hex.EncodeToString(d.Data)
		case tdx.KindRootCRL:
			out["root_ca_crl"] = hex.EncodeToString(d.Data)
		}
	}
	return out
}

// snpCases are reports of each product and version, good ones and such with a changed byte.
func snpCases(t *testing.T) (cases []crateCase) {
	t.Helper()
	for _, product := range []snp.Product{snp.Milan, snp.Genoa, snp.Turin} {
		for _, version := range []uint32{2, 3, 5} {
			for _, key := range []snp.SigningKey{snp.VCEK, snp.VLEK} {
				spec := snptest.Spec{Product: product, Version: version, Key: key}
				m := snptest.Make(t, spec)
				for _, at := range []int{0, 0x90, 0x29F} {
					cases = append(cases, snpCase(spec, m, at))
				}
			}
		}
	}
	return cases
}

// snpCase is a report with the byte at an offset changed; 0: with none.
func snpCase(spec snptest.Spec, m *snptest.Made, at int) crateCase {
	e := m.Evidence
	c := crateCase{Crate: "sev 8.0.0"}
	c.What = fmt.Sprintf("report of %s, version %d, %s", spec.Product, spec.Version, spec.Key)
	if at > 0 {
		e.Report = changedAt(e.Report, at)
		c.What += fmt.Sprintf(", byte %#x changed", at)
	}
	var want snp.Expectations
	want.Undecided = []attestation.Item{
		attestation.ItemReportData, attestation.ItemInitData, attestation.ItemMeasurement, snp.ItemTCB,
	}
	_, err := m.Verifier.Verify(e, m.Collateral(), want)
	c.Refuse = err != nil
	c.Ask = map[string]any{"kind": "snp", "report": e.Report, "ark": m.Root, "ask": m.Middle, "vek": m.Leaf}
	if err != nil {
		return c
	}
	c.Value = map[string]any{
		"version": spec.Version, "measurement": base64.StdEncoding.EncodeToString(e.Report[0x90:0xC0]),
	}
	if spec.Version == 2 && spec.Product != snp.Turin {
		c.Differs = "the tests' chip id has 8 bytes, so the crate takes a report of version 2 for one of Turin"
	}
	return c
}
