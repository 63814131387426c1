// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"fmt"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/eventlog"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

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
	if len(b) > eventlog.MaxSize {
		return malformed("event_log", fmt.Sprintf("at most %d bytes", eventlog.MaxSize), fmt.Sprint(len(b)))
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
	v.events, err = eventlog.Claims(&v.trail, log, func(ccel.Event) bool { return true })
	return err
}
