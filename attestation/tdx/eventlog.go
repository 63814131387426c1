// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"fmt"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// maxEventLog bounds the event log. The area that a CCEL table points at has up to 1 MiB.
const maxEventLog = 4 << 20

// checkEventLog replays the log. It must lead to all four registers, and no event may state data that its own digest
// contradicts.
func (v *verification) checkEventLog() error {
	b := v.evidence.EventLog
	if len(b) == 0 {
		if v.want.NeedEventLog {
			return attestation.Fail(attestation.CodeEventLog, "event_log", "an event log", "none", nil)
		}
		return nil
	}
	if len(b) > maxEventLog {
		return malformed("event_log", fmt.Sprintf("at most %d bytes", maxEventLog), fmt.Sprint(len(b)))
	}
	log, err := ccel.Parse(b)
	if err != nil {
		return attestation.Fail(attestation.CodeMalformed, "event_log", "a log of TCG's format", "other bytes", err)
	}
	for i, got := range log.Replay(nil) {
		quoted := v.quote.Body.RTMR[i]
		if err := v.trail.Check(got.Equal(measurement.Digest(quoted)), attestation.Check{
			Code: attestation.CodeEventLog, Field: fmt.Sprintf("event_log.rtmr%d", i), Expected: quoted.String(),
			Got: got.String(),
		}); err != nil {
			return err
		}
	}
	return v.readEvents(log)
}

func (v *verification) readEvents(log *ccel.Log) error {
	v.events = make([]any, 0, len(log.Events))
	for i, e := range log.Events {
		x := e.Explain()
		if x.Coverage == ccel.Contradicted {
			return attestation.Fail(attestation.CodeEventLog, fmt.Sprintf("event_log[%d]", i),
				"a digest of the event's data", fmt.Sprintf("%s of %s with digest %s", e.Type, x.Name, e.Digest), nil)
		}
		v.events = append(v.events, eventClaims(e, x))
	}
	return v.trail.Check(true, attestation.Check{
		Code: attestation.CodeEventLog, Field: "event_log.digests", Expected: "no digest contradicts its event",
		Got: fmt.Sprintf("%d events", len(log.Events)),
	})
}

// eventClaims are what an event says. Its data is the host's word unless "covers" is "event": then the digest is that
// of
// the data, recomputed here. "part" means that the digest is that of a part of the data, such as a variable's value.
// The
// type is never covered, so the same data may stand under another type.
func eventClaims(e ccel.Event, x ccel.Explanation) map[string]any {
	sum := sha512.Sum384(e.Data)
	covers := "none"
	switch {
	case bytes.Equal(sum[:], e.Digest):
		covers = "event"
	case x.Coverage == ccel.CoversEvent || x.Coverage == ccel.CoversValue:
		covers = "part"
	}
	return map[string]any{
		"index": float64(e.MR), "register": e.Register(), "type_name": e.Type.String(), "digest": e.Digest.String(),
		"event": base64.StdEncoding.EncodeToString(e.Data), "name": x.Name, "detail": x.Detail, "covers": covers,
		"digest_matches_event": covers == "event",
	}
}
