// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ccel_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
	"github.com/coco-shim/coco/tests/vectors"
)

// The registers of a TD quote lie at fixed places (Intel DCAP, TD report 1.0 body after the 48-byte header).
func quoteRegisters(q []byte) (r ccel.Registers) {
	for i := range r {
		at := 48 + 328 + 48*i
		r[i] = q[at : at+48]
	}
	return r
}

func TestReplayLeadsToTheQuotesRegisters(t *testing.T) {
	dir := vectors.Dir(t)
	log, err := ccel.Parse(vectors.Read(t, dir, "tdx/go-tdx-guest/ccel_data.dat"))
	if err != nil {
		t.Fatal(err)
	}
	got, want := log.Replay(nil), quoteRegisters(vectors.Read(t, dir, "tdx/go-tdx-guest/cos-113-tdx-quote.dat"))
	for i := range 3 {
		if !got[i].Equal(want[i]) {
			t.Errorf("RTMR%d = %s, the quote has %s", i, got[i], want[i])
		}
	}
}

// The log of dstack comes without its quote; its authors state what it leads to.
func TestReplayLeadsToThePublishedRegisters(t *testing.T) {
	log, err := ccel.Parse(vectors.Read(t, vectors.Dir(t), "tdx/dstack/ccel.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"274c2344", "bdcf4ee0", "00000000", "00000000"} {
		if got := log.Replay(nil)[i].String(); got[:8] != want {
			t.Errorf("RTMR%d = %s, want %s…", i, got, want)
		}
	}
}

func TestParseAgreesWithPublishedParse(t *testing.T) {
	dir := vectors.Dir(t)
	var want struct {
		Events []struct {
			Matches bool `json:"digest_matches_event"`
			Digests []struct{ Digest string }
			Event   []byte
			Index   uint32
			Type    string `json:"type_name"`
			Details struct {
				Name   string `json:"unicode_name"`
				String string
			}
		} `json:"uefi_event_logs"`
	}
	if err := json.Unmarshal(vectors.Read(t, dir, "tdx/trustee/el_CCEL_data_ovmf_out.json"), &want); err != nil {
		t.Fatal(err)
	}
	log, err := ccel.Parse(vectors.Read(t, dir, "tdx/trustee/CCEL_data_ovmf"))
	if err != nil || len(log.Events) != len(want.Events) {
		t.Fatalf("Parse = %d events, %v, want %d", len(log.Events), err, len(want.Events))
	}
	for i, w := range want.Events {
		e := log.Events[i]
		x := e.Explain()
		if e.MR != w.Index || e.Type.String() != w.Type || e.Digest.String() != w.Digests[0].Digest ||
			!bytes.Equal(e.Data, w.Event) {
			t.Errorf("event %d = %d %s %s %s, want %d %s", i, e.MR, e.Type, e.Digest, base64.StdEncoding.EncodeToString(e.Data),
				w.Index, w.Type)
		}
		if (x.Coverage == ccel.CoversEvent) != w.Matches || x.Coverage == ccel.Contradicted {
			t.Errorf("event %d: %s, want digest_matches_event %v", i, x.Coverage, w.Matches)
		}
		if w.Details.Name != "" && x.Name != w.Details.Name {
			t.Errorf("event %d: name %q, want %q", i, x.Name, w.Details.Name)
		}
		if w.Details.String != "" && !strings.Contains(x.Name+x.Detail, w.Details.String) {
			t.Errorf("event %d: %q %q, want %q", i, x.Name, x.Detail, w.Details.String)
		}
	}
}

// sampleLog is a log that our own description leads to.
func sampleLog(events ...ccel.Event) []byte {
	le := binary.LittleEndian
	b := make([]byte, 32)
	le.PutUint32(b, 1)
	le.PutUint32(b[4:], uint32(ccel.EvNoAction))
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
	le.PutUint32(b[28:], uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, e.MR), uint32(e.Type)), 1)
		b = append(le.AppendUint16(b, 0x0c), e.Digest...)
		b = append(le.AppendUint32(b, uint32(len(e.Data))), e.Data...)
	}
	return append(b, bytes.Repeat([]byte{0xff}, 64)...)
}

func event(mr uint32, kind ccel.EventType, data string) ccel.Event {
	h := sha512.Sum384([]byte(data))
	return ccel.Event{MR: mr, Type: kind, Digest: h[:], Data: []byte(data)}
}

func TestExplainShowsAForgedEvent(t *testing.T) {
	forged := event(2, ccel.EvAction, "Exit Boot Services Invocation")
	forged.Data = []byte("Something harmless\x1b[2J")
	log, err := ccel.Parse(sampleLog(forged, event(1, ccel.EvSeparator, "\x00\x00\x00\x00")))
	if err != nil {
		t.Fatal(err)
	}
	if x := log.Events[0].Explain(); x.Coverage != ccel.Contradicted || strings.ContainsRune(x.Detail, 0x1b) {
		t.Errorf("forged event = %+v, want it contradicted and harmless to print", x)
	}
	if x := log.Events[1].Explain(); x.Coverage != ccel.CoversEvent {
		t.Errorf("separator = %+v", x)
	}
}

func TestParseRefusesMalformedLogs(t *testing.T) {
	le := binary.LittleEndian
	const first = 32 + 33
	for name, change := range map[string]func([]byte) []byte{
		"empty":                 func([]byte) []byte { return nil },
		"no specification":      func(b []byte) []byte { b[4] = 4; return b },
		"other specification":   func(b []byte) []byte { b[32] = 'X'; return b },
		"huge first event":      func(b []byte) []byte { le.PutUint32(b[28:], 1<<31); return b },
		"many algorithms":       func(b []byte) []byte { le.PutUint32(b[56:], 1<<20); return b },
		"short SHA-384":         func(b []byte) []byte { b[62] = 47; return b },
		"register 5":            func(b []byte) []byte { b[first] = 5; return b },
		"no digest":             func(b []byte) []byte { b[first+8] = 0; return b },
		"many digests":          func(b []byte) []byte { b[first+8] = 255; return b },
		"unannounced algorithm": func(b []byte) []byte { b[first+12] = 4; return b },
		"huge event":            func(b []byte) []byte { le.PutUint32(b[first+12+50:], 1<<31); return b },
		"cut":                   func(b []byte) []byte { return b[:first+20] },
		"rubbish at the end":    func(b []byte) []byte { b[len(b)-1] = 1; return b },
	} {
		if l, err := ccel.Parse(change(sampleLog(event(1, ccel.EvSeparator, "\x00\x00\x00\x00")))); err == nil {
			t.Errorf("%s: Parse = %d events, want a refusal", name, len(l.Events))
		}
	}
}

func TestAnySingleBitOfADigestChangesTheReplay(t *testing.T) {
	base := []ccel.Event{
		event(1, ccel.EvSeparator, "a"), event(2, ccel.EvAction, "b"), event(3, ccel.EvIPL, "c"),
		event(4, ccel.EvIPL, "d"),
	}
	log, err := ccel.Parse(sampleLog(base...))
	if err != nil {
		t.Fatal(err)
	}
	want := log.Replay(nil)
	rapid.Check(t, func(t *rapid.T) {
		n, bit := rapid.IntRange(0, 3).Draw(t, "event"), rapid.IntRange(0, 383).Draw(t, "bit")
		events := append([]ccel.Event(nil), base...)
		events[n].Digest = append(measurement.Digest(nil), events[n].Digest...)
		events[n].Digest[bit/8] ^= 1 << (bit % 8)
		l, err := ccel.Parse(sampleLog(events...))
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range l.Replay(nil) {
			if r.Equal(want[i]) == (i == n) {
				t.Fatalf("RTMR%d changed = %v after event %d changed", i, !r.Equal(want[i]), n)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(sampleLog(event(1, ccel.EvSeparator, "\x00\x00\x00\x00"),
		event(3, ccel.EvEventTag, "\xed\x22\x3b\x8f\x00\x00\x00\x00x"), event(1, ccel.EvVarBoot, strings.Repeat("\x00", 40)),
		event(2, ccel.EvBootApplication, strings.Repeat("\x04\x04\x08\x00", 12)),
		event(1, ccel.EvFirmwareBlob2, "\x01a0123456789abcdef")))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		l, err := ccel.Parse(b)
		if err != nil {
			return
		}
		var trace measurement.Trace
		l.Replay(&trace)
		if len(trace.Steps) != len(l.Events) || len(l.Events) > len(b) {
			t.Errorf("%d events, %d steps of %d bytes", len(l.Events), len(trace.Steps), len(b))
		}
	})
}

// tpmLog is sampleLog for a TPM: digests of SHA-256 beside those of SHA-384.
func tpmLog(events ...ccel.Event) []byte {
	le := binary.LittleEndian
	b := make([]byte, 32)
	le.PutUint32(b[4:], uint32(ccel.EvNoAction))
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 2, 0, 0, 0, 0x0b, 0, 32, 0, 0x0c, 0, 48, 0, 0)
	le.PutUint32(b[28:], uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		short, long := sha256.Sum256(e.Data), sha512.Sum384(e.Data)
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, e.MR), uint32(e.Type)), 2)
		b = append(le.AppendUint16(b, 0x0b), short[:]...)
		b = append(le.AppendUint16(b, 0x0c), long[:]...)
		b = append(le.AppendUint32(b, uint32(len(e.Data))), e.Data...)
	}
	return b
}

func TestLogOfTPMLeadsToThePCRsOfItsBank(t *testing.T) {
	area := tpmLog(
		ccel.Event{MR: 0, Type: ccel.EvNoAction, Data: []byte("StartupLocality\x00\x04")},
		ccel.Event{MR: 0, Type: ccel.EvAction, Data: []byte("version")},
		ccel.Event{MR: 23, Type: ccel.EvSeparator, Data: make([]byte, 4)},
		ccel.Event{MR: 23, Type: ccel.EvSeparator, Data: make([]byte, 4)},
	)
	for bank, sum := range map[crypto.Hash]func(...[]byte) []byte{
		crypto.SHA256: func(b ...[]byte) []byte { s := sha256.Sum256(bytes.Join(b, nil)); return s[:] },
		crypto.SHA384: func(b ...[]byte) []byte { s := sha512.Sum384(bytes.Join(b, nil)); return s[:] },
	} {
		log, err := ccel.ParseTPM(area, bank)
		if err != nil {
			t.Fatal(err)
		}
		got, err := log.ReplayTPM()
		if err != nil {
			t.Fatal(err)
		}
		start := append(make([]byte, bank.Size()-1), 4)
		once := sum(make([]byte, bank.Size()), sum(make([]byte, 4)))
		want := map[int]measurement.Digest{0: sum(start, sum([]byte("version"))), 23: sum(once, sum(make([]byte, 4)))}
		if len(got) != 2 || !got[0].Equal(want[0]) || !got[23].Equal(want[23]) {
			t.Errorf("%v: PCRs %v, want %v", bank, got, want)
		}
		for i, name := range []string{"pcr00", "pcr00", "pcr23", "pcr23"} {
			e := log.Events[i]
			if x := e.Explain(); e.Register() != name || i > 0 && x.Coverage != ccel.CoversEvent {
				t.Errorf("%v: event %d is of %s, %s; want %s", bank, i, e.Register(), x.Coverage, name)
			}
		}
	}
	if _, err := ccel.ParseTPM(area, crypto.SHA512); err == nil {
		t.Error("a log without digests of SHA-512 is read as one of that bank")
	}
	if _, err := ccel.Parse(area); err == nil {
		t.Error("the log of a TPM is read as one of a TD")
	}
	dynamic, err := ccel.ParseTPM(tpmLog(ccel.Event{MR: 17, Type: ccel.EvAction, Data: []byte("x")}), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if pcrs, err := dynamic.ReplayTPM(); err == nil {
		t.Errorf("a dynamic launch is replayed: %v", pcrs)
	}
}
