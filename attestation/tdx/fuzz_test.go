// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"testing"

	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

func mustFail(t *testing.T, err error) {
	t.Helper()
	if _, ok := attestation.FailureOf(err); err != nil && !ok {
		t.Errorf("%v is no failure with a code", err)
	}
}

// Any bytes of a guest are refused with a code, or are signed.
func FuzzQuote(f *testing.F) {
	p := tdxtest.New(f, nil)
	for _, body := range []tdx.BodyType{0, tdx.TD10, tdx.TD15, tdx.TD15Ext} {
		f.Add(p.Quote(f, body, nil))
	}
	f.Add(testdata.RawQuote)
	f.Add(testdata.RawQuoteV5)
	c := p.Collateral(f, nil)
	f.Fuzz(func(t *testing.T, quote []byte) {
		e := attestation.Evidence{Type: attestation.TDX, Report: quote}
		_, err := tdx.Requests(e)
		mustFail(t, err)
		_, err = tdx.Verify(e, c, p.Expectations())
		mustFail(t, err)
		if q, err := tdx.Parse(quote); err == nil && q.Header.Version != 4 && q.Header.Version != 5 {
			t.Errorf("a quote of version %d", q.Header.Version)
		}
	})
}

// Any event log is refused with a code, or replays to the registers.
func FuzzEventLog(f *testing.F) {
	events := []ccel.Event{
		tdxtest.Event(1, ccel.EvSeparator, "\x00\x00\x00\x00"),
		tdxtest.Event(3, ccel.EvEventTag, "\xed\x22\x3b\x8f\x04\x00\x00\x00text"),
		tdxtest.Event(1, ccel.EvVarBoot, string(make([]byte, 40))),
		tdxtest.Event(2, ccel.EvBootApplication, string(make([]byte, 48))),
	}
	f.Add(tdxtest.EventLog())
	f.Add(tdxtest.EventLog(events...))
	p := tdxtest.New(f, nil)
	quote, c, want := p.Quote(f, 0, nil), p.Collateral(f, nil), p.Expectations()
	f.Fuzz(func(t *testing.T, area []byte) {
		_, err := tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: quote, EventLog: area}, c, want)
		mustFail(t, err)
	})
}

// Any documents are refused with a code, or are signed by the root.
func FuzzCollateral(f *testing.F) {
	p := tdxtest.New(f, nil)
	quote, good := p.Quote(f, 0, nil), p.Collateral(f, nil)
	for i := range good.Documents {
		f.Add(i, good.Documents[i].Data, good.Documents[i].Chain)
	}
	f.Add(0, testdata.TcbInfoBodyV5, []byte("-----BEGIN%20CERTIFICATE-----"))
	f.Add(2, testdata.PckCrlBody, []byte{})
	f.Fuzz(func(t *testing.T, i int, data, chain []byte) {
		c := good
		c.Documents = append([]attestation.Document(nil), good.Documents...)
		d := &c.Documents[uint(i)%uint(len(c.Documents))]
		d.Data, d.Chain = data, chain
		_, err := tdx.Verify(attestation.Evidence{Type: attestation.TDX, Report: quote}, c, p.Expectations())
		mustFail(t, err)
	})
}
