// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

func mustFail(t *testing.T, err error) {
	t.Helper()
	if _, ok := attestation.FailureOf(err); err != nil && !ok {
		t.Errorf("%v is no failure with a code", err)
	}
}

// Any bytes of a guest are refused with a code, or are signed.
func FuzzEvidence(f *testing.F) {
	for _, p := range []*tpmtest.TPM{tpmtest.NewECC(f), tpmtest.NewRSA(f)} {
		e := p.Quote(f, nonce, nil)
		cert, _ := p.Certificate(f, nil)
		f.Add(e.Report, e.Signature, e.Key, cert)
	}
	pcrs := map[int][]byte{}
	for i := range 24 {
		pcrs[i] = make([]byte, 32)
	}
	f.Fuzz(func(t *testing.T, report, signature, key, cert []byte) {
		e := attestation.Evidence{
			Type: attestation.TPM, Report: report, Signature: signature, Key: key, PCRs: pcrs,
			Certificates: cert,
		}
		_, err := tpm.Verify(e, attestation.Collateral{Now: tpmtest.Now}, expectations())
		mustFail(t, err)
	})
}

// Any event log is refused with a code, or replays to the PCRs.
func FuzzEventLog(f *testing.F) {
	f.Add(eventLog())
	f.Add(eventLog(
		ccel.Event{MR: 0, Type: ccel.EvNoAction, Data: []byte("StartupLocality\x00\x03")},
		ccel.Event{MR: 7, Type: ccel.EvSeparator, Data: make([]byte, 4)},
		ccel.Event{MR: 23, Type: ccel.EvVarBoot, Data: make([]byte, 40)},
		ccel.Event{MR: 9, Type: ccel.EvEventTag, Data: []byte("\xec\x22\x3b\x8f\x04\x00\x00\x00text")},
	))
	e := tpmtest.NewECC(f).Quote(f, nonce, nil)
	f.Fuzz(func(t *testing.T, area []byte) {
		changed := e
		changed.EventLog = area
		_, err := tpm.Verify(changed, attestation.Collateral{Now: tpmtest.Now}, expectations())
		mustFail(t, err)
	})
}
