// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
)

var nonce = []byte("nonce of this request, 32 bytes.")

// round is one verification. Its parts are right until a case edits them.
type round struct {
	tpm        *tpmtest.TPM
	evidence   attestation.Evidence
	collateral attestation.Collateral
	want       tpm.Expectations
}

func newRound(t *testing.T, p *tpmtest.TPM, edit func(*tpmtest.Attest)) *round {
	t.Helper()
	r := &round{tpm: p, evidence: p.Quote(t, nonce, edit), collateral: attestation.Collateral{Now: tpmtest.Now}}
	r.want = expectations()
	return r
}

// expectations leave key, initdata and measurement to the caller.
func expectations() tpm.Expectations {
	e := tpm.Expectations{Selection: &tpm.Selection{Bank: crypto.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}}
	e.ReportData = nonce
	e.Undecided = []attestation.Item{attestation.ItemInitData, attestation.ItemMeasurement, tpm.ItemKey}
	return e
}

func (r *round) verify() (*attestation.Claims, error) {
	return tpm.Verify(r.evidence, r.collateral, r.want)
}

func refused(t *testing.T, err error, code attestation.Code, field string) {
	t.Helper()
	f, ok := attestation.FailureOf(err)
	if !ok {
		t.Fatalf("verified, or no failure: %v; want %s of %s", err, code, field)
	}
	if f.Code != code || f.Field != field {
		t.Errorf("%v: code %s of %q, want %s of %q", err, f.Code, f.Field, code, field)
	}
}

// keys are a TPM of each kind of key and scheme.
func keys(t *testing.T) map[string]*tpmtest.TPM {
	t.Helper()
	pss := tpmtest.NewRSA(t)
	pss.Scheme = tpmtest.RSAPSS
	long := tpmtest.NewECC(t)
	long.Hash = tpmtest.SHA384
	return map[string]*tpmtest.TPM{"RSASSA": tpmtest.NewRSA(t), "RSAPSS": pss, "ECDSA": tpmtest.NewECC(t), "SHA-384": long}
}

func TestQuotesOfEachKeyVerify(t *testing.T) {
	for name, p := range keys(t) {
		p.Extend(4, bytes.Repeat([]byte{1}, 32))
		r := newRound(t, p, nil)
		c, err := r.verify()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(c.ReportData, nonce) || !bytes.Equal(c.Registers["pcr04"], p.PCRs[4]) || len(c.Registers) != 10 {
			t.Errorf("%s: claims %v", name, c)
		}
		quote := c.Details["quote"].(map[string]any)
		if quote["reset_count"] != 2. || quote["restart_count"] != 3. || quote["safe"] != true || quote["clock"] != 1234. {
			t.Errorf("%s: quote %v", name, quote)
		}
		text, err := json.Marshal(c.Details)
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]any
		if err := json.Unmarshal(text, &back); err != nil || !cmp.Equal(c.Details, back) {
			t.Errorf("%s: details change by JSON: %v %s", name, err, cmp.Diff(c.Details, back))
		}
		r.evidence.Signature[len(r.evidence.Signature)-1] ^= 1
		_, err = r.verify()
		refused(t, err, attestation.CodeSignature, "quote.signature")
	}
}

// A raw signature has no scheme beside it: RSASSA, or r and s of ECDSA.
func TestRawSignaturesVerify(t *testing.T) {
	for name, p := range keys(t) {
		r := newRound(t, p, nil)
		whole := r.evidence.Signature
		if strings.HasPrefix(name, "RSA") {
			r.evidence.Signature = whole[6:]
			if _, err := r.verify(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		size := int(whole[5])
		rest := whole[6+size+2:]
		sides := append(left(whole[6:6+size]), left(rest)...)
		r.evidence.Signature = sides
		if _, err := r.verify(); err != nil {
			t.Errorf("%s, beside each other: %v", name, err)
		}
		r.evidence.Signature = asn1Pair(t, sides)
		if _, err := r.verify(); err != nil {
			t.Errorf("%s, in DER: %v", name, err)
		}
	}
}

// left fills a number to 32 bytes.
func left(b []byte) []byte { return append(make([]byte, 32-len(b)), b...) }

func asn1Pair(t *testing.T, sides []byte) []byte {
	t.Helper()
	number := func(b []byte) asn1.RawValue { // positive, without needless zeros
		b = bytes.TrimLeft(b, "\x00")
		if b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return asn1.RawValue{Tag: asn1.TagInteger, Bytes: b}
	}
	der, err := asn1.Marshal([]asn1.RawValue{number(sides[:32]), number(sides[32:])})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Each case breaks one thing of the quote, before it is signed.
func TestQuotesAreRefused(t *testing.T) {
	p := tpmtest.NewECC(t)
	sel := func(s ...tpmtest.Select) func(*tpmtest.Attest) {
		return func(a *tpmtest.Attest) { a.Selections = s }
	}
	for _, tc := range []struct {
		name  string
		edit  func(*tpmtest.Attest)
		code  attestation.Code
		field string
	}{
		{"magic", func(a *tpmtest.Attest) { a.Magic++ }, attestation.CodeTPMQuote, "quote.magic"},
		{"certify", func(a *tpmtest.Attest) { a.Type = 0x8017 }, attestation.CodeTPMQuote, "quote.type"},
		{"safe", func(a *tpmtest.Attest) { a.Safe = 2 }, attestation.CodeMalformed, "quote.safe"},
		{"tail", func(a *tpmtest.Attest) { a.Tail = []byte{0} }, attestation.CodeMalformed, "quote"},
		{"digest", func(a *tpmtest.Attest) { a.Digest = make([]byte, 32) }, attestation.CodePCRDigest, "quote.pcr_digest"},
		{"nonce", func(a *tpmtest.Attest) { a.ExtraData = make([]byte, 32) }, attestation.CodeReportData, "report-data"},
		{"short nonce", func(a *tpmtest.Attest) { a.ExtraData = nonce[:31] }, attestation.CodeExpectation, "report-data"},
		{"no PCRs", sel(), attestation.CodePCRSelection, "quote.pcr_select"},
		{
			"a PCR less", sel(tpmtest.Select{Hash: tpmtest.SHA256, Bits: []byte{0xfe, 3, 0}}), attestation.CodePCRSelection,
			"quote.pcr_select",
		},
		{
			"a PCR more", sel(tpmtest.Select{Hash: tpmtest.SHA256, Bits: []byte{0xff, 3, 1}}), attestation.CodePCRSelection,
			"quote.pcr_select",
		},
		{
			"another bank", sel(tpmtest.Select{Hash: tpmtest.SHA384, Bits: []byte{0xff, 3, 0}}), attestation.CodePCRSelection,
			"quote.pcr_select",
		},
		{
			"two banks", sel(tpmtest.Select{Hash: tpmtest.SHA256, Bits: []byte{0xff, 3, 0}},
				tpmtest.Select{Hash: tpmtest.SHA384}),
			attestation.CodePCRSelection, "quote.pcr_select",
		},
		{
			"in two parts", sel(tpmtest.Select{Hash: tpmtest.SHA256, Bits: []byte{0xff, 0, 0}},
				tpmtest.Select{Hash: tpmtest.SHA256, Bits: []byte{0, 3, 0}}),
			attestation.CodePCRSelection, "quote.pcr_select",
		},
		{
			"bank of SHA-1", sel(tpmtest.Select{Hash: tpmtest.SHA1, Bits: []byte{0xff, 3, 0}}), attestation.CodeUnsupported,
			"quote.pcr_select.hash",
		},
		{
			"long bitmap", sel(tpmtest.Select{Hash: tpmtest.SHA256, Bits: []byte{0xff, 3, 0, 0, 0}}), attestation.CodeMalformed,
			"quote.pcr_select.size",
		},
		{"many selections", sel(make([]tpmtest.Select, 4)...), attestation.CodeMalformed, "quote.pcr_select.count"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newRound(t, p, tc.edit).verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

// Each case breaks the key, or what comes beside the quote.
func TestEvidenceIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name  string
		edit  func(*testing.T, *round)
		code  attestation.Code
		field string
	}{
		{"type", func(_ *testing.T, r *round) { r.evidence.Type = attestation.SNP }, attestation.CodeUnsupported, "type"},
		{
			"time", func(_ *testing.T, r *round) { r.collateral.Now = time.Time{} }, attestation.CodeExpectation, "time",
		},
		{"no key", func(_ *testing.T, r *round) { r.evidence.Key = nil }, attestation.CodeMalformed, "key"},
		{
			"key of another TPM", func(t *testing.T, r *round) { r.evidence.Key = tpmtest.NewECC(t).Public(t, tpmtest.ECDSA) },
			attestation.CodeSignature, "quote.signature",
		},
		{
			"key with a tail", func(_ *testing.T, r *round) { r.evidence.Key = append(r.evidence.Key[2:], 0) },
			attestation.CodeMalformed, "key",
		},
		{
			"value of a PCR", func(_ *testing.T, r *round) { r.evidence.PCRs[9] = make([]byte, 31) }, attestation.CodePCRDigest,
			"pcr09",
		},
		{
			"no value of a PCR", func(_ *testing.T, r *round) { delete(r.evidence.PCRs, 0) }, attestation.CodePCRDigest,
			"pcr00",
		},
		{
			"another value of a PCR", func(_ *testing.T, r *round) { r.evidence.PCRs[9] = bytes.Repeat([]byte{1}, 32) },
			attestation.CodePCRDigest, "quote.pcr_digest",
		},
		{
			"no signature", func(_ *testing.T, r *round) { r.evidence.Signature = nil }, attestation.CodeMalformed,
			"signature.scheme",
		},
		{
			"hash of the signature", func(_ *testing.T, r *round) { r.evidence.Signature[3] = tpmtest.SHA1 },
			attestation.CodeUnsupported,
			"signature.hash",
		},
		{
			"another hash than the key's", func(_ *testing.T, r *round) { r.evidence.Signature[3] = tpmtest.SHA384 },
			attestation.CodeSignature, "quote.signature",
		},
		{
			"scheme of the signature", func(_ *testing.T, r *round) { r.evidence.Signature[1] = 0x1a },
			attestation.CodeUnsupported,
			"signature.scheme",
		},
		{
			"scheme of another kind of key", func(t *testing.T, r *round) {
				r.evidence.Signature = tpmtest.NewRSA(t).Sign(t, r.evidence.Report)
			},
			attestation.CodeSignature, "quote.signature",
		},
		{
			"long quote", func(_ *testing.T, r *round) { r.evidence.Report = make([]byte, 64<<10+1) },
			attestation.CodeMalformed, "quote",
		},
		{
			"long signature", func(_ *testing.T, r *round) { r.evidence.Signature = make([]byte, 64<<10+1) },
			attestation.CodeMalformed,
			"signature",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRound(t, tpmtest.NewECC(t), nil)
			tc.edit(t, r)
			_, err := r.verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

func TestExpectationsAreCompared(t *testing.T) {
	p := tpmtest.NewECC(t)
	digest := bytes.Repeat([]byte{7}, 48)
	p.Extend(8, digest[:32])
	p.Extend(9, digest)
	wrong := [][]byte{bytes.Repeat([]byte{1}, 32)}
	for _, tc := range []struct {
		name  string
		edit  func(e *tpm.Expectations)
		code  attestation.Code
		field string
	}{
		{"all is as expected", func(e *tpm.Expectations) {
			e.Undecided, e.InitData = []attestation.Item{tpm.ItemKey}, digest
			e.Registers = map[string][][]byte{"pcr09": {wrong[0], p.PCRs[9]}, "pcr00": {make([]byte, 32)}}
			e.Selection.PCRs = []int{9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0}
		}, "", ""},
		{
			"no measurement", func(e *tpm.Expectations) { e.Undecided = append(e.Undecided[:1:1], tpm.ItemKey) },
			attestation.CodeExpectation, "measurement",
		},
		{"launch digest", func(e *tpm.Expectations) { e.Measurements = wrong }, attestation.CodeExpectation, "measurement"},
		{"no selection", func(e *tpm.Expectations) { e.Selection = nil }, attestation.CodeExpectation, "pcr-selection"},
		{
			"empty selection", func(e *tpm.Expectations) { e.Selection.PCRs = nil }, attestation.CodeExpectation,
			"pcr-selection",
		},
		{"initdata", func(e *tpm.Expectations) { e.InitData = wrong[0] }, attestation.CodeInitData, "pcr08"},
		{"short initdata", func(e *tpm.Expectations) { e.InitData = wrong[0][:31] }, attestation.CodeExpectation, "pcr08"},
		{
			"no initdata", func(e *tpm.Expectations) { e.Undecided = e.Undecided[1:] }, attestation.CodeExpectation,
			"init-data",
		},
		{
			"register", func(e *tpm.Expectations) { e.Registers = map[string][][]byte{"pcr09": wrong} },
			attestation.CodeRegister, "pcr09",
		},
		{
			"register that is not quoted", func(e *tpm.Expectations) {
				e.Registers = map[string][][]byte{"pcr10": {make([]byte, 32)}}
			},
			attestation.CodeRegister, "pcr10",
		},
		{"report data", func(e *tpm.Expectations) { e.ReportData = wrong[0] }, attestation.CodeReportData, "report-data"},
		{"no report data", func(e *tpm.Expectations) { e.ReportData = nil }, attestation.CodeExpectation, "report-data"},
		{"event log", func(e *tpm.Expectations) { e.NeedEventLog = true }, attestation.CodeEventLog, "event_log"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRound(t, p, nil)
			tc.edit(&r.want)
			c, err := r.verify()
			if tc.code == "" {
				if err != nil || !bytes.Equal(c.InitData, p.PCRs[8]) {
					t.Error(c, err)
				}
				return
			}
			refused(t, err, tc.code, tc.field)
		})
	}
}

// PCR 8 that is not quoted proves no initdata.
func TestInitDataNeedsItsPCR(t *testing.T) {
	r := newRound(t, tpmtest.NewECC(t), func(a *tpmtest.Attest) { a.Selections[0].Bits = []byte{1, 0, 0} })
	r.want.Selection.PCRs, r.want.InitData = []int{0}, make([]byte, 32)
	_, err := r.verify()
	refused(t, err, attestation.CodeInitData, "pcr08")
}

func TestAnySelectionOnlyWhenSaid(t *testing.T) {
	p := tpmtest.NewECC(t)
	r := newRound(t, p, func(a *tpmtest.Attest) { a.Selections[0].Bits = []byte{0x10} })
	r.want.Selection = nil
	r.want.Undecided = append(r.want.Undecided, tpm.ItemSelection)
	c, err := r.verify()
	if err != nil || len(c.Registers) != 1 || c.Registers["pcr04"] == nil || c.Details["init_data"] != nil {
		t.Errorf("%v, %v", c, err)
	}
	r = newRound(t, p, func(a *tpmtest.Attest) { a.Selections = append(a.Selections, a.Selections[0]) })
	r.want.Selection, r.want.Undecided = nil, append(r.want.Undecided, tpm.ItemSelection)
	_, err = r.verify()
	refused(t, err, attestation.CodePCRSelection, "quote.pcr_select")
	r = newRound(t, p, func(a *tpmtest.Attest) { a.Selections[0].Bits, a.Digest = []byte{0, 0, 0, 1}, make([]byte, 32) })
	r.want.Selection, r.want.Undecided = nil, append(r.want.Undecided, tpm.ItemSelection)
	_, err = r.verify()
	refused(t, err, attestation.CodePCRDigest, "pcr24")
}

// Every flipped bit of quote, signature and key is refused.
func TestFlippedBits(t *testing.T) {
	r := newRound(t, tpmtest.NewECC(t), nil)
	good := r.evidence
	for name, part := range map[string]func(*attestation.Evidence) *[]byte{
		"quote":     func(e *attestation.Evidence) *[]byte { return &e.Report },
		"signature": func(e *attestation.Evidence) *[]byte { return &e.Signature },
		"key":       func(e *attestation.Evidence) *[]byte { return &e.Key },
	} {
		size := len(*part(&good))
		for i := range 8 * size {
			r.evidence = good
			changed := bytes.Clone(*part(&good))
			changed[i/8] ^= 1 << (i % 8)
			*part(&r.evidence) = changed
			if _, err := r.verify(); err == nil && (name != "key" || !harmless(i)) {
				t.Errorf("bit %d of the %s is flipped, and the quote verifies", i, name)
			}
			if _, err := r.verify(); err != nil {
				if _, ok := attestation.FailureOf(err); !ok {
					t.Errorf("%v is no failure", err)
				}
			}
			r.evidence = good
			*part(&r.evidence) = (*part(&good))[:i/8]
			if _, err := r.verify(); err == nil {
				t.Errorf("%d of %d bytes of the %s verify", i/8, size, name)
			}
		}
	}
}

// harmless tells of the bits of a key that are the algorithm of its name, or attributes without meaning for an AK. They
// are part of its name: a caller who knows the name refuses them.
func harmless(bit int) bool { return bit/8 >= 4 && bit/8 < 10 }
