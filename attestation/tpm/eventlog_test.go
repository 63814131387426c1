// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// eventLog encodes events of a TPM's log, each with the SHA-256 digest of its data unless one is given.
func eventLog(events ...ccel.Event) []byte {
	le := binary.LittleEndian
	b := make([]byte, 32)
	le.PutUint32(b[4:], uint32(ccel.EvNoAction))
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0)
	le.PutUint32(b[28:], uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, e.MR), uint32(e.Type)), 1)
		b = append(le.AppendUint16(b, 0x0b), digest(e)...)
		b = append(le.AppendUint32(b, uint32(len(e.Data))), e.Data...)
	}
	return b
}

func digest(e ccel.Event) []byte {
	if e.Digest != nil {
		return e.Digest
	}
	sum := sha256.Sum256(e.Data)
	return sum[:]
}

func TestEventLogs(t *testing.T) {
	started := ccel.Event{MR: 0, Type: ccel.EvNoAction, Data: []byte("StartupLocality\x00\x03"), Digest: make([]byte, 32)}
	version := ccel.Event{MR: 0, Type: ccel.EvAction, Data: []byte("version")}
	separator := ccel.Event{MR: 7, Type: ccel.EvSeparator, Data: make([]byte, 4)}
	initrd := ccel.Event{
		MR: 9, Type: ccel.EvEventTag, Digest: bytes.Repeat([]byte{5}, 32),
		Data: []byte("\xec\x22\x3b\x8f\x04\x00\x00\x00text"),
	}
	late := ccel.Event{MR: 12, Type: ccel.EvIPL, Data: []byte("not quoted")}
	for _, tc := range []struct {
		name   string
		events []ccel.Event
		code   attestation.Code
		field  string
	}{
		{"all", []ccel.Event{started, version, separator, initrd, late}, "", ""},
		{"without PCR 9, of which it says nothing", []ccel.Event{started, version, separator}, "", ""},
		{"another locality", []ccel.Event{version, separator, initrd}, attestation.CodeEventLog, "event_log.pcr00"},
		{"an event twice", []ccel.Event{started, version, separator, separator}, attestation.CodeEventLog, "event_log.pcr07"},
		{
			"data that the digest contradicts",
			[]ccel.Event{
				started, version, {MR: 7, Type: ccel.EvSeparator, Data: []byte{9}, Digest: digest(separator)},
			},
			attestation.CodeEventLog, "event_log[2]",
		},
		{
			"a dynamic launch",
			[]ccel.Event{{MR: 17, Type: ccel.EvIPL, Data: []byte("x")}},
			attestation.CodeEventLog,
			"event_log",
		},
		{
			"a PCR that no TPM has",
			[]ccel.Event{{MR: 24, Type: ccel.EvIPL, Data: []byte("x")}},
			attestation.CodeMalformed,
			"event_log",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tpmtest.NewECC(t)
			p.PCRs[0][31] = 3
			p.Extend(0, digest(version))
			p.Extend(7, digest(separator))
			p.Extend(9, digest(initrd))
			r := newRound(t, p, nil)
			r.want.NeedEventLog = true
			r.evidence.EventLog = eventLog(tc.events...)
			c, err := r.verify()
			if tc.code != "" {
				refused(t, err, tc.code, tc.field)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range c.Details["uefi_event_logs"].([]any) {
				m := e.(map[string]any)
				got = append(got, m["register"].(string)+" "+m["covers"].(string))
			}
			want := []string{"pcr00 event", "pcr07 event", "pcr09 none"}[:min(3, len(tc.events)-1)]
			if len(got) != len(want) || got[0] != want[0] || got[len(got)-1] != want[len(want)-1] {
				t.Errorf("events %v, want %v", got, want)
			}
		})
	}
	r := newRound(t, tpmtest.NewECC(t), nil)
	r.evidence.EventLog = append(eventLog(), make([]byte, 4<<20)...)
	_, err := r.verify()
	refused(t, err, attestation.CodeMalformed, "event_log")
}
