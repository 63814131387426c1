// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"fmt"
	"maps"
	"slices"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/eventlog"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// checkEventLog replays the log. Each quoted PCR of which the log has an event must come out. A PCR without one is not
// explained by the log, as when an agent has extended it and writes no log.
func (v *verification) checkEventLog() error {
	b := v.evidence.EventLog
	if len(b) == 0 {
		if v.want.NeedEventLog {
			return attestation.Fail(attestation.CodeEventLog, "event_log", "an event log", "none", nil)
		}
		return nil
	}
	if len(b) > eventlog.MaxSize {
		return malformed("event_log", fmt.Sprintf("at most %d bytes", eventlog.MaxSize), fmt.Sprint(len(b)))
	}
	log, err := ccel.ParseTPM(b, v.selection.Bank)
	if err != nil {
		return attestation.Fail(attestation.CodeMalformed, "event_log", "a log of TCG's format", "other bytes", err)
	}
	replayed, err := log.ReplayTPM()
	if err != nil {
		return attestation.Fail(attestation.CodeEventLog, "event_log", "events that can be replayed", "others", err)
	}
	for _, n := range slices.Sorted(maps.Keys(replayed)) {
		if !slices.Contains(v.selection.PCRs, n) {
			continue
		}
		quoted := measurement.Digest(v.evidence.PCRs[n])
		if err := v.trail.Check(replayed[n].Equal(quoted), attestation.Check{
			Code: attestation.CodeEventLog, Field: "event_log." + pcrName(n), Expected: quoted.String(),
			Got: replayed[n].String(),
		}); err != nil {
			return err
		}
	}
	v.events, err = eventlog.Claims(&v.trail, log, func(e ccel.Event) bool {
		return e.Type != ccel.EvNoAction && slices.Contains(v.selection.PCRs, int(e.MR))
	})
	return err
}
