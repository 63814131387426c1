// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"testing"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// withLog returns a verification of a quote whose registers are those that the events lead to.
func withLog(t *testing.T, events ...ccel.Event) *round {
	t.Helper()
	area := tdxtest.EventLog(events...)
	r := newRound(t, tdxtest.New(t, nil), 0, func(q *tdxtest.Parts) {
		for i, d := range replay(t, area) {
			copy(q.Body[tdxtest.RTMR0+48*i:], d)
		}
	}, nil)
	r.evidence.EventLog = area
	r.want.NeedEventLog = true
	return r
}

func TestEventLogIsReplayed(t *testing.T) {
	tag := "\xed\x22\x3b\x8f\x04\x00\x00\x00text"
	events := []ccel.Event{
		tdxtest.Event(1, ccel.EvSeparator, "\x00\x00\x00\x00"),
		tdxtest.Event(2, ccel.EvAction, "Calling EFI Application from Boot Option"),
		{MR: 3, Type: ccel.EvEventTag, Digest: tdxtest.Event(3, 0, "other bytes").Digest, Data: []byte(tag)},
		tdxtest.Event(4, ccel.EvIPL, "anything"),
		{
			MR: 4, Type: ccel.EvIPL, Digest: tdxtest.Event(4, 0, "linux /vmlinuz").Digest,
			Data: []byte("grub_cmd: linux /vmlinuz"),
		},
	}
	r := withLog(t, events...)
	c, err := r.verify()
	if err != nil {
		t.Fatal(err)
	}
	list := c.Details["uefi_event_logs"].([]any)
	if len(list) != len(events) {
		t.Fatalf("%d events are told, want %d", len(list), len(events))
	}
	for i, want := range []string{"rtmr0 event", "rtmr1 event", "rtmr2 none", "rtmr3 event", "rtmr3 part"} {
		e := list[i].(map[string]any)
		if got := e["register"].(string) + " " + e["covers"].(string); got != want ||
			e["digest"] != events[i].Digest.String() {
			t.Errorf("event %d is told as %v, want %v", i, e, want)
		}
	}
	// Data that a digest covers cannot change; the type of an event can.
	for i := 0; i < len(r.evidence.EventLog)-64; i += 3 {
		changed := *r
		changed.evidence.EventLog = bytes.Clone(r.evidence.EventLog)
		changed.evidence.EventLog[i] ^= 1
		got, err := changed.verify()
		if err != nil {
			continue
		}
		for j, e := range got.Details["uefi_event_logs"].([]any) {
			if m := e.(map[string]any); m["covers"] == "event" && m["event"] != list[j].(map[string]any)["event"] {
				t.Errorf("byte %d is flipped, and event %d has other data: %v", i, j, m)
			}
		}
	}
}

func TestEventLogsAreRefused(t *testing.T) {
	events := []ccel.Event{
		tdxtest.Event(1, ccel.EvSeparator, "\x00\x00\x00\x00"),
		tdxtest.Event(4, ccel.EvIPL, "anything"),
	}
	wrongData := tdxtest.Event(1, ccel.EvSeparator, "\x00\x00\x00\x00")
	wrongData.Data = []byte{1, 0, 0, 0}
	for _, tc := range []struct {
		name  string
		area  []byte
		code  attestation.Code
		field string
	}{
		{"an event is missing", tdxtest.EventLog(events[1:]...), attestation.CodeEventLog, "event_log.rtmr0"},
		{
			"an event of the last register is missing", tdxtest.EventLog(events[:1]...), attestation.CodeEventLog,
			"event_log.rtmr3",
		},
		{
			"an event is moved", tdxtest.EventLog(events[0], tdxtest.Event(3, ccel.EvIPL, "anything")),
			attestation.CodeEventLog, "event_log.rtmr2",
		},
		{
			"an event too many", tdxtest.EventLog(append(events, tdxtest.Event(2, ccel.EvIPL, "x"))...),
			attestation.CodeEventLog, "event_log.rtmr1",
		},
		{
			"data that the digest contradicts", tdxtest.EventLog(wrongData, events[1]), attestation.CodeEventLog,
			"event_log[0]",
		},
		{"no log", []byte("no log"), attestation.CodeMalformed, "event_log"},
		{
			"too long", append(tdxtest.EventLog(events...), bytes.Repeat([]byte{0xff}, 4<<20)...), attestation.CodeMalformed,
			"event_log",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := withLog(t, events...)
			r.evidence.EventLog = tc.area
			_, err := r.verify()
			refused(t, err, tc.code, tc.field)
		})
	}
}

func replay(t *testing.T, area []byte) ccel.Registers {
	t.Helper()
	log, err := ccel.Parse(area)
	if err != nil {
		t.Fatal(err)
	}
	return log.Replay(nil)
}
