// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package eventlog tells the events of a log in claims, after a verifier has replayed the log and found the registers
// of
// its evidence. The replay proves the digests and their order. It does not prove the data of an event, which the host
// writes beside the digest: so each digest whose bytes are in the log is computed again here.
package eventlog

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// MaxSize bounds a log. The area that a CCEL table points at has up to 1 MiB.
const MaxSize = 4 << 20

// Claims returns what the log says about the registers that the caller has proven. It fails if an event states data
// that
// its own digest contradicts. Of each event, "covers" says which part of "event" the digest is computed of: "event"
// for all of
// it, "part" for a part of it such as a variable's value, "none" for bytes that are not in the log. The type of an
// event
// is never covered, so the same data may stand under another type.
func Claims(t *attestation.Trail, log *ccel.Log, proven func(ccel.Event) bool) ([]any, error) {
	events := []any{}
	for i, e := range log.Events {
		if !proven(e) {
			continue
		}
		x := e.Explain()
		if x.Coverage == ccel.Contradicted {
			return nil, attestation.Fail(attestation.CodeEventLog, fmt.Sprintf("event_log[%d]", i),
				"a digest of the event's data", fmt.Sprintf("%s of %s with digest %s", e.Type, x.Name, e.Digest), nil)
		}
		covers := covered(e, x)
		events = append(events, map[string]any{
			"index": float64(e.MR), "register": e.Register(), "type_name": e.Type.String(), "digest": e.Digest.String(),
			"event": base64.StdEncoding.EncodeToString(e.Data), "name": x.Name, "detail": x.Detail,
			"covers": covers, "digest_matches_event": covers == "event",
		})
	}
	return events, t.Check(true, attestation.Check{
		Code: attestation.CodeEventLog, Field: "event_log.digests", Expected: "no digest contradicts its event",
		Got: fmt.Sprintf("%d events", len(events)),
	})
}

func covered(e ccel.Event, x ccel.Explanation) string {
	sum := make([]byte, 0, sha512.Size384)
	if len(e.Digest) == sha256.Size {
		s := sha256.Sum256(e.Data)
		sum = append(sum, s[:]...)
	} else {
		s := sha512.Sum384(e.Data)
		sum = append(sum, s[:]...)
	}
	switch {
	case e.Type == ccel.EvNoAction: // not measured
	case bytes.Equal(sum, e.Digest):
		return "event"
	case x.Coverage == ccel.CoversEvent || x.Coverage == ccel.CoversValue:
		return "part"
	}
	return "none"
}
