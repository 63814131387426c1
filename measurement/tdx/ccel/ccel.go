// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ccel reads the event log of a TD (the area that the CCEL table points at), replays it and
// explains each event. The log of a TPM has the same form, with PCRs in place of the TD's registers.
// The log is data from the host: lengths are checked before use, and text from it is made safe to
// print.
package ccel

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coco-shim/coco/measurement"
)

// EventType is the type of an event (TCG PC Client Platform Firmware Profile, 10.4.1).
type EventType uint32

// Event types that occur in logs of TDs.
const (
	EvPostCode        EventType = 0x01
	EvNoAction        EventType = 0x03
	EvSeparator       EventType = 0x04
	EvEventTag        EventType = 0x06
	EvPlatformConfig  EventType = 0x0a
	EvIPL             EventType = 0x0d
	EvVarDriverConfig EventType = 0x80000001
	EvVarBoot         EventType = 0x80000002
	EvBootApplication EventType = 0x80000003
	EvBootDriver      EventType = 0x80000004
	EvGPT             EventType = 0x80000006
	EvAction          EventType = 0x80000007
	EvFirmwareBlob    EventType = 0x80000008
	EvHandoffTables   EventType = 0x80000009
	EvFirmwareBlob2   EventType = 0x8000000a
	EvHandoffTables2  EventType = 0x8000000b
	EvVarBoot2        EventType = 0x8000000c
	EvVarAuthority    EventType = 0x800000e0
)

var eventNames = map[EventType]string{
	EvPostCode: "EV_POST_CODE", EvNoAction: "EV_NO_ACTION", EvSeparator: "EV_SEPARATOR", EvEventTag: "EV_EVENT_TAG",
	EvPlatformConfig: "EV_PLATFORM_CONFIG_FLAGS", EvIPL: "EV_IPL", EvVarDriverConfig: "EV_EFI_VARIABLE_DRIVER_CONFIG",
	EvVarBoot: "EV_EFI_VARIABLE_BOOT", EvBootApplication: "EV_EFI_BOOT_SERVICES_APPLICATION",
	EvBootDriver: "EV_EFI_BOOT_SERVICES_DRIVER",
	EvGPT:        "EV_EFI_GPT_EVENT", EvAction: "EV_EFI_ACTION", EvFirmwareBlob: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
	EvHandoffTables: "EV_EFI_HANDOFF_TABLES", EvFirmwareBlob2: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
	EvHandoffTables2: "EV_EFI_HANDOFF_TABLES2",
	EvVarBoot2:       "EV_EFI_VARIABLE_BOOT2", EvVarAuthority: "EV_EFI_VARIABLE_AUTHORITY",
}

// String returns the type's name in the specification.
func (t EventType) String() string {
	if n, ok := eventNames[t]; ok {
		return n
	}
	return fmt.Sprintf("event %#x", uint32(t))
}

// Event is one entry of an event log.
type Event struct {
	MR     uint32 // 0: MRTD, 1-4: RTMR0-RTMR3; the number of the PCR if TPM
	TPM    bool   // the event is of a TPM's log
	Type   EventType
	Digest measurement.Digest // SHA-384; of a TPM's log: of the bank that was read
	Data   []byte             // aliases the log
}

// Register returns the name of the event's register.
func (e Event) Register() string {
	if e.TPM {
		return fmt.Sprintf("pcr%02d", e.MR)
	}
	if e.MR == 0 {
		return "mrtd"
	}
	return fmt.Sprintf("rtmr%d", e.MR-1)
}

// Log is a parsed event log. It comes from the host: it proves nothing until its replay equals the
// registers of a verified quote.
type Log struct {
	Events []Event
}

// format is what differs between the logs of TDs and TPMs.
type format struct {
	tpm   bool
	alg   uint16 // of the digests that are read
	size  int    // of those digests
	maxMR uint32
}

var tdFormat = format{alg: 0x0c, size: sha512.Size384, maxMR: maxMR}

const (
	maxAlgs     = 16
	maxMR       = 4
	pcrHeader   = 32 // TCG_PCR_EVENT: index, type, SHA-1 digest, size
	eventHeader = 12 // TCG_PCR_EVENT2: index, type, count of digests
	specIDSize  = 28 // up to the list of algorithms
)

var specID = []byte("Spec ID Event03\x00")

// Parse reads the event-log area that the CCEL table points at: a specification event, events with
// SHA-384 digests, and padding of zeros or ones.
func Parse(b []byte) (*Log, error) { return parse(b, tdFormat) }

func parse(b []byte, f format) (*Log, error) {
	sizes, rest, err := f.parseSpecID(b)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l := &Log{}
	for !padding(rest) {
		e, next, err := f.parseEvent(rest, sizes)
		if err != nil {
			return nil, fmt.Errorf("event log: event %d at %#x: %w", len(l.Events), len(b)-len(rest), err)
		}
		l.Events = append(l.Events, e)
		rest = next
	}
	return l, nil
}

// parseSpecID reads the first event, which says how long digests are.
func (f format) parseSpecID(b []byte) (sizes map[uint16]int, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < pcrHeader {
		return nil, nil, fmt.Errorf("has %d bytes, too few for a first event", len(b))
	}
	size := int64(le.Uint32(b[28:]))
	if le.Uint32(b[4:]) != uint32(EvNoAction) || size > int64(len(b)-pcrHeader) || size < specIDSize {
		return nil, nil, errors.New("does not begin with a specification event")
	}
	ev := b[pcrHeader : pcrHeader+size]
	if string(ev[:16]) != string(specID) {
		return nil, nil, fmt.Errorf("begins with %q, not with %q", ev[:16], specID)
	}
	count := int64(le.Uint32(ev[24:]))
	if count == 0 || count > maxAlgs || specIDSize+4*count > size {
		return nil, nil, fmt.Errorf("names %d algorithms in %d bytes", count, size)
	}
	sizes = make(map[uint16]int, count)
	for i := range count {
		a := ev[specIDSize+4*i:]
		sizes[le.Uint16(a)] = int(le.Uint16(a[2:]))
	}
	if sizes[f.alg] != f.size {
		return nil, nil, fmt.Errorf("has digests of algorithm %#x with %d bytes, not %d", f.alg, sizes[f.alg], f.size)
	}
	return sizes, b[pcrHeader+size:], nil
}

// padding reports whether nothing follows but fill bytes.
func padding(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	fill := b[0]
	if fill != 0 && fill != 0xff {
		return false
	}
	for _, c := range b {
		if c != fill {
			return false
		}
	}
	return true
}

func (f format) parseEvent(b []byte, sizes map[uint16]int) (e Event, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < eventHeader {
		return e, nil, fmt.Errorf("%d bytes are left, too few for an event", len(b))
	}
	e = Event{MR: le.Uint32(b), TPM: f.tpm, Type: EventType(le.Uint32(b[4:]))}
	if e.MR > f.maxMR {
		return e, nil, fmt.Errorf("register index %d is not between 0 and %d", e.MR, f.maxMR)
	}
	count := le.Uint32(b[8:])
	if count == 0 || count > maxAlgs {
		return e, nil, fmt.Errorf("has %d digests", count)
	}
	b = b[eventHeader:]
	for range count {
		if len(b) < 2 {
			return e, nil, errors.New("ends in its digests")
		}
		alg := le.Uint16(b)
		size, ok := sizes[alg]
		if !ok {
			return e, nil, fmt.Errorf("digest of algorithm %#x, which the log does not announce", alg)
		}
		if len(b) < 2+size {
			return e, nil, errors.New("ends in its digests")
		}
		if alg == f.alg {
			e.Digest = b[2 : 2+size : 2+size]
		}
		b = b[2+size:]
	}
	if e.Digest == nil {
		return e, nil, fmt.Errorf("has no digest of algorithm %#x", f.alg)
	}
	if len(b) < 4 {
		return e, nil, errors.New("ends before its data")
	}
	size := int64(le.Uint32(b))
	if size > int64(len(b)-4) {
		return e, nil, fmt.Errorf("has %d bytes of data, more than the log's %d", size, len(b)-4)
	}
	e.Data = b[4 : 4+size : 4+size]
	return e, b[4+size:], nil
}

// Registers are the values of RTMR0 to RTMR3.
type Registers [4]measurement.Digest

// Replay returns the registers that the log leads to. The trace receives every event with an explanation.
func (l *Log) Replay(t *measurement.Trace) Registers {
	var r [maxMR + 1][sha512.Size384]byte
	for _, e := range l.Events {
		x := e.Explain()
		step := measurement.Step{
			Register: e.Register(), Source: x.Name, Kind: e.Type.String(), Size: uint64(len(e.Data)),
			Content: e.Digest, Note: x.String(),
		}
		if e.Type != EvNoAction && e.MR != 0 { // such events are information only; MRTD is not extended by software
			r[e.MR] = sha512.Sum384(append(r[e.MR][:], e.Digest...))
			step.After = r[e.MR][:]
		}
		t.Add(step)
	}
	var out Registers
	for i := range out {
		out[i] = r[i+1][:]
	}
	return out
}
